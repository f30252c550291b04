from lowdimfa.services.rpc.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_TRAIN: _ClassVar[Kind]
    KIND_EVALUATE: _ClassVar[Kind]
    KIND_PART: _ClassVar[Kind]
    KIND_SUM: _ClassVar[Kind]
    KIND_ERROR: _ClassVar[Kind]
    KIND_PROBE: _ClassVar[Kind]
KIND_TRAIN: Kind
KIND_EVALUATE: Kind
KIND_PART: Kind
KIND_SUM: Kind
KIND_ERROR: Kind
KIND_PROBE: Kind

class Header(_message.Message):
    __slots__ = ("sequence", "offset", "run", "block", "kind", "step", "microbatch", "tensors", "carried")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CARRIED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    offset: int
    run: int
    block: int
    kind: Kind
    step: int
    microbatch: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorType]
    carried: bool
    def __init__(self, sequence: _Optional[int] = ..., offset: _Optional[int] = ..., run: _Optional[int] = ..., block: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., step: _Optional[int] = ..., microbatch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorType, _Mapping]]] = ..., carried: bool = ...) -> None: ...

class TensorType(_message.Message):
    __slots__ = ("dtype", "shape")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dtype: _tensors_pb2.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[_tensors_pb2.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class SubscribeRequest(_message.Message):
    __slots__ = ("run", "block", "next_sequence", "rank")
    RUN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    run: str
    block: int
    next_sequence: int
    rank: int
    def __init__(self, run: _Optional[str] = ..., block: _Optional[int] = ..., next_sequence: _Optional[int] = ..., rank: _Optional[int] = ...) -> None: ...
