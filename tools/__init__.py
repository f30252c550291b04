"""Programs that write what the repository holds besides its sources: stubs, reference pages, dashboards, rules."""
