"""The live page: jobs, or one run, in a browser while they go."""
