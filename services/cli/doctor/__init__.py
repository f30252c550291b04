"""What is there to train with, and what would fail.

Each check is a function of plain facts that returns a `Finding`; the modules beside it read the facts.
"""
