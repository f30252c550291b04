"""Specifications: the YAML that defines a run, its schema, and how it is loaded."""

from lowdimfa.services.spec.load import load_specification, parse_specification, to_yaml
from lowdimfa.services.spec.schema import Specification

__all__ = ["Specification", "load_specification", "parse_specification", "to_yaml"]
