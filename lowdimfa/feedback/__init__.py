"""Feedback weights ``Q``, the error projection ``P``, and the rules by which they learn."""
