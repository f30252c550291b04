from lowdimfa.services.rpc.v1 import tensors_pb2 as _tensors_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActivationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACTIVATION_KIND_TRAIN: _ClassVar[ActivationKind]
    ACTIVATION_KIND_EVALUATE: _ClassVar[ActivationKind]
    ACTIVATION_KIND_PART: _ClassVar[ActivationKind]
    ACTIVATION_KIND_SUM: _ClassVar[ActivationKind]
ACTIVATION_KIND_TRAIN: ActivationKind
ACTIVATION_KIND_EVALUATE: ActivationKind
ACTIVATION_KIND_PART: ActivationKind
ACTIVATION_KIND_SUM: ActivationKind

class ActivationHeader(_message.Message):
    __slots__ = ("sequence", "offset", "shared", "run", "block", "kind", "step", "microbatch", "tensors")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICROBATCH_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    offset: int
    shared: bool
    run: int
    block: int
    kind: ActivationKind
    step: int
    microbatch: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorType]
    def __init__(self, sequence: _Optional[int] = ..., offset: _Optional[int] = ..., shared: bool = ..., run: _Optional[int] = ..., block: _Optional[int] = ..., kind: _Optional[_Union[ActivationKind, str]] = ..., step: _Optional[int] = ..., microbatch: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorType, _Mapping]]] = ...) -> None: ...

class TensorType(_message.Message):
    __slots__ = ("dtype", "shape")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    dtype: _tensors_pb2.Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dtype: _Optional[_Union[_tensors_pb2.Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ActivationAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...
