from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_STARTING: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_STOPPING: _ClassVar[JobState]
    JOB_STATE_FINISHED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_STOPPED: _ClassVar[JobState]

class StopMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STOP_MODE_GRACEFUL: _ClassVar[StopMode]
    STOP_MODE_NOW: _ClassVar[StopMode]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_STARTING: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_STOPPING: JobState
JOB_STATE_FINISHED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_STOPPED: JobState
STOP_MODE_GRACEFUL: StopMode
STOP_MODE_NOW: StopMode

class Job(_message.Message):
    __slots__ = ("id", "name", "owner", "state", "detail", "error", "created", "started", "ended", "attempt", "step", "steps", "loss", "test_accuracy", "last_sequence", "run_dir")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    owner: str
    state: JobState
    detail: str
    error: Failed
    created: _timestamp_pb2.Timestamp
    started: _timestamp_pb2.Timestamp
    ended: _timestamp_pb2.Timestamp
    attempt: int
    step: int
    steps: int
    loss: float
    test_accuracy: float
    last_sequence: int
    run_dir: str
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., owner: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ..., detail: _Optional[str] = ..., error: _Optional[_Union[Failed, _Mapping]] = ..., created: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., ended: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., attempt: _Optional[int] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., test_accuracy: _Optional[float] = ..., last_sequence: _Optional[int] = ..., run_dir: _Optional[str] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("name", "specification", "files", "client_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    specification: str
    files: _containers.RepeatedCompositeFieldContainer[SourceFile]
    client_key: str
    def __init__(self, name: _Optional[str] = ..., specification: _Optional[str] = ..., files: _Optional[_Iterable[_Union[SourceFile, _Mapping]]] = ..., client_key: _Optional[str] = ...) -> None: ...

class SourceFile(_message.Message):
    __slots__ = ("path", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: str
    content: str
    def __init__(self, path: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class SubmitJobResponse(_message.Message):
    __slots__ = ("job", "created")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    job: Job
    created: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., created: bool = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job", "specification")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    job: Job
    specification: str
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., specification: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("states", "owner", "name_prefix", "page_size", "page_token")
    STATES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NAME_PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    states: _containers.RepeatedScalarFieldContainer[JobState]
    owner: str
    name_prefix: str
    page_size: int
    page_token: str
    def __init__(self, states: _Optional[_Iterable[_Union[JobState, str]]] = ..., owner: _Optional[str] = ..., name_prefix: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "after_sequence")
    ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    id: str
    after_sequence: int
    def __init__(self, id: _Optional[str] = ..., after_sequence: _Optional[int] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("sequence", "time", "state", "started", "progress", "evaluated", "alignment", "checkpoint", "warning", "finished", "failed", "recovering", "recovered", "checkpoint_failed")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RECOVERING_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FAILED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    time: _timestamp_pb2.Timestamp
    state: StateChanged
    started: Started
    progress: Progress
    evaluated: Evaluated
    alignment: Alignment
    checkpoint: Checkpoint
    warning: Warned
    finished: Finished
    failed: Failed
    recovering: Recovering
    recovered: Recovered
    checkpoint_failed: CheckpointFailed
    def __init__(self, sequence: _Optional[int] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[StateChanged, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., evaluated: _Optional[_Union[Evaluated, _Mapping]] = ..., alignment: _Optional[_Union[Alignment, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., warning: _Optional[_Union[Warned, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., recovering: _Optional[_Union[Recovering, _Mapping]] = ..., recovered: _Optional[_Union[Recovered, _Mapping]] = ..., checkpoint_failed: _Optional[_Union[CheckpointFailed, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("state", "detail", "attempt")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    state: JobState
    detail: str
    attempt: int
    def __init__(self, state: _Optional[_Union[JobState, str]] = ..., detail: _Optional[str] = ..., attempt: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("run_dir", "engine", "blocks", "parameters", "error_dim", "steps", "step", "nodes", "pids", "source", "boundaries", "replicas", "evaluated_split")
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ERROR_DIM_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BOUNDARIES_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_SPLIT_FIELD_NUMBER: _ClassVar[int]
    run_dir: str
    engine: str
    blocks: int
    parameters: int
    error_dim: int
    steps: int
    step: int
    nodes: int
    pids: Pids
    source: str
    boundaries: _containers.RepeatedScalarFieldContainer[str]
    replicas: _containers.RepeatedScalarFieldContainer[int]
    evaluated_split: str
    def __init__(self, run_dir: _Optional[str] = ..., engine: _Optional[str] = ..., blocks: _Optional[int] = ..., parameters: _Optional[int] = ..., error_dim: _Optional[int] = ..., steps: _Optional[int] = ..., step: _Optional[int] = ..., nodes: _Optional[int] = ..., pids: _Optional[_Union[Pids, _Mapping]] = ..., source: _Optional[str] = ..., boundaries: _Optional[_Iterable[str]] = ..., replicas: _Optional[_Iterable[int]] = ..., evaluated_split: _Optional[str] = ...) -> None: ...

class Pids(_message.Message):
    __slots__ = ("trainer", "blocks")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    trainer: int
    blocks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, trainer: _Optional[int] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "steps", "epoch", "loss", "accuracy", "samples", "samples_per_second", "eta_seconds", "perplexity", "bits_per_byte", "tokens_per_second")
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    step: int
    steps: int
    epoch: int
    loss: float
    accuracy: float
    samples: int
    samples_per_second: float
    eta_seconds: float
    perplexity: float
    bits_per_byte: float
    tokens_per_second: float
    def __init__(self, step: _Optional[int] = ..., steps: _Optional[int] = ..., epoch: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., samples: _Optional[int] = ..., samples_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., perplexity: _Optional[float] = ..., bits_per_byte: _Optional[float] = ..., tokens_per_second: _Optional[float] = ...) -> None: ...

class Evaluated(_message.Message):
    __slots__ = ("step", "test_loss", "test_accuracy", "test_perplexity", "test_bits_per_byte", "test_tokens", "metrics")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TEST_LOSS_FIELD_NUMBER: _ClassVar[int]
    TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    TEST_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    TEST_BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    TEST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    step: int
    test_loss: float
    test_accuracy: float
    test_perplexity: float
    test_bits_per_byte: float
    test_tokens: int
    metrics: _struct_pb2.Struct
    def __init__(self, step: _Optional[int] = ..., test_loss: _Optional[float] = ..., test_accuracy: _Optional[float] = ..., test_perplexity: _Optional[float] = ..., test_bits_per_byte: _Optional[float] = ..., test_tokens: _Optional[int] = ..., metrics: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Alignment(_message.Message):
    __slots__ = ("step", "blocks", "explained_error_energy")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_ERROR_ENERGY_FIELD_NUMBER: _ClassVar[int]
    step: int
    blocks: _containers.RepeatedCompositeFieldContainer[BlockAlignment]
    explained_error_energy: float
    def __init__(self, step: _Optional[int] = ..., blocks: _Optional[_Iterable[_Union[BlockAlignment, _Mapping]]] = ..., explained_error_energy: _Optional[float] = ...) -> None: ...

class BlockAlignment(_message.Message):
    __slots__ = ("block", "cosine", "angle_degrees", "update_norm", "gradient_norm")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    ANGLE_DEGREES_FIELD_NUMBER: _ClassVar[int]
    UPDATE_NORM_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_FIELD_NUMBER: _ClassVar[int]
    block: int
    cosine: float
    angle_degrees: float
    update_norm: float
    gradient_norm: float
    def __init__(self, block: _Optional[int] = ..., cosine: _Optional[float] = ..., angle_degrees: _Optional[float] = ..., update_norm: _Optional[float] = ..., gradient_norm: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("step", "path", "seconds", "pause_seconds")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    step: int
    path: str
    seconds: float
    pause_seconds: float
    def __init__(self, step: _Optional[int] = ..., path: _Optional[str] = ..., seconds: _Optional[float] = ..., pause_seconds: _Optional[float] = ...) -> None: ...

class CheckpointFailed(_message.Message):
    __slots__ = ("step", "message")
    STEP_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    message: str
    def __init__(self, step: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Warned(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Recovering(_message.Message):
    __slots__ = ("policy", "blocks", "reason", "step", "recovery")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    reason: str
    step: int
    recovery: int
    def __init__(self, policy: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., reason: _Optional[str] = ..., step: _Optional[int] = ..., recovery: _Optional[int] = ...) -> None: ...

class Recovered(_message.Message):
    __slots__ = ("policy", "blocks", "step", "missed", "seconds", "pids")
    class MissedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PIDS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    blocks: _containers.RepeatedScalarFieldContainer[int]
    step: int
    missed: _containers.ScalarMap[int, int]
    seconds: float
    pids: Pids
    def __init__(self, policy: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ..., step: _Optional[int] = ..., missed: _Optional[_Mapping[int, int]] = ..., seconds: _Optional[float] = ..., pids: _Optional[_Union[Pids, _Mapping]] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("run_dir", "steps", "samples", "seconds", "samples_per_second", "test_loss", "test_accuracy", "blocks", "error_dim", "broadcast_payload_bytes_per_sample", "broadcast_wire_bytes_per_sample", "parameters", "test_perplexity", "test_bits_per_byte", "test_tokens", "metrics", "stopped_early")
    RUN_DIR_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TEST_LOSS_FIELD_NUMBER: _ClassVar[int]
    TEST_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ERROR_DIM_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_PAYLOAD_BYTES_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    BROADCAST_WIRE_BYTES_PER_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TEST_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    TEST_BITS_PER_BYTE_FIELD_NUMBER: _ClassVar[int]
    TEST_TOKENS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_EARLY_FIELD_NUMBER: _ClassVar[int]
    run_dir: str
    steps: int
    samples: int
    seconds: float
    samples_per_second: float
    test_loss: float
    test_accuracy: float
    blocks: int
    error_dim: int
    broadcast_payload_bytes_per_sample: float
    broadcast_wire_bytes_per_sample: float
    parameters: int
    test_perplexity: float
    test_bits_per_byte: float
    test_tokens: int
    metrics: _struct_pb2.Struct
    stopped_early: str
    def __init__(self, run_dir: _Optional[str] = ..., steps: _Optional[int] = ..., samples: _Optional[int] = ..., seconds: _Optional[float] = ..., samples_per_second: _Optional[float] = ..., test_loss: _Optional[float] = ..., test_accuracy: _Optional[float] = ..., blocks: _Optional[int] = ..., error_dim: _Optional[int] = ..., broadcast_payload_bytes_per_sample: _Optional[float] = ..., broadcast_wire_bytes_per_sample: _Optional[float] = ..., parameters: _Optional[int] = ..., test_perplexity: _Optional[float] = ..., test_bits_per_byte: _Optional[float] = ..., test_tokens: _Optional[int] = ..., metrics: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., stopped_early: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("code", "message", "exit_code", "block", "step", "setting")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SETTING_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    exit_code: int
    block: int
    step: int
    setting: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., block: _Optional[int] = ..., step: _Optional[int] = ..., setting: _Optional[str] = ...) -> None: ...

class StopJobRequest(_message.Message):
    __slots__ = ("id", "mode")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    id: str
    mode: StopMode
    def __init__(self, id: _Optional[str] = ..., mode: _Optional[_Union[StopMode, str]] = ...) -> None: ...

class StopJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResumeJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: Job
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ...) -> None: ...

class GetLogsRequest(_message.Message):
    __slots__ = ("id", "tail", "follow", "sources")
    ID_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    id: str
    tail: int
    follow: bool
    sources: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., tail: _Optional[int] = ..., follow: bool = ..., sources: _Optional[_Iterable[str]] = ...) -> None: ...

class LogLine(_message.Message):
    __slots__ = ("source", "text")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    source: str
    text: str
    def __init__(self, source: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
