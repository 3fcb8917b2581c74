from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClassifyRequest(_message.Message):
    __slots__ = ("image", "model", "top_k", "tta", "coverage", "priority", "embedding")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TTA_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    model: str
    top_k: int
    tta: str
    coverage: float
    priority: str
    embedding: bool
    def __init__(self, image: _Optional[bytes] = ..., model: _Optional[str] = ..., top_k: _Optional[int] = ..., tta: _Optional[str] = ..., coverage: _Optional[float] = ..., priority: _Optional[str] = ..., embedding: _Optional[bool] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("request_id", "model", "version", "predictions", "abstained", "image", "timings", "decision", "group", "label_set", "members", "embedding", "batch_views")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LABEL_SET_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    BATCH_VIEWS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    version: int
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    abstained: bool
    image: ImageInfo
    timings: Timings
    decision: Decision
    group: Group
    label_set: LabelSet
    members: _containers.RepeatedCompositeFieldContainer[Member]
    embedding: _containers.RepeatedScalarFieldContainer[float]
    batch_views: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., abstained: _Optional[bool] = ..., image: _Optional[_Union[ImageInfo, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., group: _Optional[_Union[Group, _Mapping]] = ..., label_set: _Optional[_Union[LabelSet, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., embedding: _Optional[_Iterable[float]] = ..., batch_views: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("model", "version", "tta", "label", "score")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TTA_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    tta: str
    label: str
    score: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., tta: _Optional[str] = ..., label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("abstain_below", "coverage", "accuracy")
    ABSTAIN_BELOW_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    abstain_below: float
    coverage: float
    accuracy: float
    def __init__(self, abstain_below: _Optional[float] = ..., coverage: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("label", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class LabelSet(_message.Message):
    __slots__ = ("coverage", "predictions")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    def __init__(self, coverage: _Optional[float] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("label", "index", "score")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    label: str
    index: int
    score: float
    def __init__(self, label: _Optional[str] = ..., index: _Optional[int] = ..., score: _Optional[float] = ...) -> None: ...

class ImageInfo(_message.Message):
    __slots__ = ("width", "height", "format")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    format: str
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., format: _Optional[str] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "infer_ms", "total_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    INFER_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., infer_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class ClassifyStreamRequest(_message.Message):
    __slots__ = ("id", "request", "timeout_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    request: ClassifyRequest
    timeout_ms: float
    def __init__(self, id: _Optional[str] = ..., request: _Optional[_Union[ClassifyRequest, _Mapping]] = ..., timeout_ms: _Optional[float] = ...) -> None: ...

class ClassifyStreamResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    response: ClassifyResponse
    error: ClassifyError
    def __init__(self, id: _Optional[str] = ..., response: _Optional[_Union[ClassifyResponse, _Mapping]] = ..., error: _Optional[_Union[ClassifyError, _Mapping]] = ...) -> None: ...

class ClassifyError(_message.Message):
    __slots__ = ("code", "detail", "retry_after_s")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    code: str
    detail: str
    retry_after_s: float
    def __init__(self, code: _Optional[str] = ..., detail: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("image", "model", "index", "method", "overlay")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    model: str
    index: int
    method: str
    overlay: bool
    def __init__(self, image: _Optional[bytes] = ..., model: _Optional[str] = ..., index: _Optional[int] = ..., method: _Optional[str] = ..., overlay: _Optional[bool] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("request_id", "model", "version", "method", "prediction", "height", "width", "values", "overlay", "image", "timings", "member")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    version: int
    method: str
    prediction: Prediction
    height: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    overlay: bytes
    image: ImageInfo
    timings: Timings
    member: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., method: _Optional[str] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., overlay: _Optional[bytes] = ..., image: _Optional[_Union[ImageInfo, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., member: _Optional[str] = ...) -> None: ...

class ModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "is_default", "state", "provider", "variant", "classes", "input_height", "input_width", "digest", "top1", "labels", "decision", "roll_up", "label_sets", "version_labels", "kind", "members")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOP1_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ROLL_UP_FIELD_NUMBER: _ClassVar[int]
    LABEL_SETS_FIELD_NUMBER: _ClassVar[int]
    VERSION_LABELS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    is_default: bool
    state: str
    provider: str
    variant: str
    classes: int
    input_height: int
    input_width: int
    digest: str
    top1: float
    labels: _containers.RepeatedScalarFieldContainer[str]
    decision: Decision
    roll_up: Reference
    label_sets: _containers.RepeatedCompositeFieldContainer[LabelSets]
    version_labels: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., is_default: _Optional[bool] = ..., state: _Optional[str] = ..., provider: _Optional[str] = ..., variant: _Optional[str] = ..., classes: _Optional[int] = ..., input_height: _Optional[int] = ..., input_width: _Optional[int] = ..., digest: _Optional[str] = ..., top1: _Optional[float] = ..., labels: _Optional[_Iterable[str]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., roll_up: _Optional[_Union[Reference, _Mapping]] = ..., label_sets: _Optional[_Iterable[_Union[LabelSets, _Mapping]]] = ..., version_labels: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("coverage", "accuracy")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    accuracy: float
    def __init__(self, coverage: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class LabelSets(_message.Message):
    __slots__ = ("tta", "levels")
    TTA_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    tta: str
    levels: _containers.RepeatedCompositeFieldContainer[LabelSetLevel]
    def __init__(self, tta: _Optional[str] = ..., levels: _Optional[_Iterable[_Union[LabelSetLevel, _Mapping]]] = ...) -> None: ...

class LabelSetLevel(_message.Message):
    __slots__ = ("coverage", "measured_coverage", "mean_labels")
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_COVERAGE_FIELD_NUMBER: _ClassVar[int]
    MEAN_LABELS_FIELD_NUMBER: _ClassVar[int]
    coverage: float
    measured_coverage: float
    mean_labels: float
    def __init__(self, coverage: _Optional[float] = ..., measured_coverage: _Optional[float] = ..., mean_labels: _Optional[float] = ...) -> None: ...
