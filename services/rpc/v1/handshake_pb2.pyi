from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_BLOCK: _ClassVar[Role]
    ROLE_HEAD: _ClassVar[Role]
ROLE_BLOCK: Role
ROLE_HEAD: Role

class HelloRequest(_message.Message):
    __slots__ = ("caller",)
    CALLER_FIELD_NUMBER: _ClassVar[int]
    caller: Description
    def __init__(self, caller: _Optional[_Union[Description, _Mapping]] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("answerer",)
    ANSWERER_FIELD_NUMBER: _ClassVar[int]
    answerer: Description
    def __init__(self, answerer: _Optional[_Union[Description, _Mapping]] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("protocol", "software", "torch", "run", "block", "role", "input", "output", "error_dim", "data")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ERROR_DIM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    torch: str
    run: str
    block: int
    role: Role
    input: _containers.RepeatedCompositeFieldContainer[SampleType]
    output: _containers.RepeatedCompositeFieldContainer[SampleType]
    error_dim: int
    data: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., torch: _Optional[str] = ..., run: _Optional[str] = ..., block: _Optional[int] = ..., role: _Optional[_Union[Role, str]] = ..., input: _Optional[_Iterable[_Union[SampleType, _Mapping]]] = ..., output: _Optional[_Iterable[_Union[SampleType, _Mapping]]] = ..., error_dim: _Optional[int] = ..., data: _Optional[str] = ...) -> None: ...

class SampleType(_message.Message):
    __slots__ = ("dtype", "shape", "name")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    name: str
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., name: _Optional[str] = ...) -> None: ...
