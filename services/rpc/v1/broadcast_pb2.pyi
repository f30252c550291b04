from lowdimfa.services.rpc.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_KIND_TRAIN: _ClassVar[ErrorKind]
    ERROR_KIND_PROBE: _ClassVar[ErrorKind]
ERROR_KIND_TRAIN: ErrorKind
ERROR_KIND_PROBE: ErrorKind

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

class ErrorMessage(_message.Message):
    __slots__ = ("run", "step", "microbatch", "kind", "sequence", "dtype", "shape", "parts_left", "data", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    PARTS_LEFT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: int
    step: int
    microbatch: int
    kind: ErrorKind
    sequence: int
    dtype: _tensors_pb2.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    parts_left: int
    data: bytes
    checksum: int
    def __init__(self, run: _Optional[int] = ..., step: _Optional[int] = ..., microbatch: _Optional[int] = ..., kind: _Optional[_Union[ErrorKind, str]] = ..., sequence: _Optional[int] = ..., dtype: _Optional[_Union[_tensors_pb2.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., parts_left: _Optional[int] = ..., data: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...
