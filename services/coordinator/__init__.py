"""The long-lived job service. Nothing is here yet: jobs are started by ``lowdimfa train`` alone."""
