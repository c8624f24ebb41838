from collections.abc import Callable

STATISTICS: int

_Matrix = tuple[int, int, int, int]
_Vector = tuple[int, int]
_Found = tuple[list[int], float, float]

class TokenTrie:
    def __init__(self, sequences: list[list[int]], ids: list[int] | None = None) -> None: ...
    @staticmethod
    def load(path: str) -> TokenTrie: ...
    @staticmethod
    def from_bytes(bytes: bytes) -> TokenTrie: ...
    def save(self, path: str) -> None: ...
    def children(self, prefix: list[int]) -> list[int] | None: ...
    def items(self, sequence: list[int]) -> list[int]: ...
    @property
    def item_count(self) -> int: ...
    @property
    def leaf_count(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    @property
    def branching_count(self) -> int: ...
    @property
    def max_token(self) -> int: ...

class Rows:
    def __init__(self, trie: TokenTrie | None, labels: _Matrix, ignored: int, shifted: bool) -> None: ...
    def __len__(self) -> int: ...

class Loss:
    def __init__(
        self,
        trie: TokenTrie | None,
        vocabulary: int,
        temperature: float,
        adaptive: tuple[str, float, float, float, float, float, int, bool] | None,
        bear: tuple[int, float, float] | None,
        reduction: tuple[str, float] | None,
        times_temperature: bool | None,
    ) -> None: ...
    @property
    def state(self) -> tuple[float, int]: ...
    def restore(self, value: float, step: int) -> None: ...
    def set_tables(self) -> bytes | None: ...
    def step(self, statistics: list[float]) -> float: ...
    def dense(self, dtype: str, logits: _Matrix, rows: Rows, temperature: float | None) -> DenseForward: ...
    def linear(
        self,
        dtype: str,
        input: tuple[_Matrix, _Matrix, int, int],
        rows: Rows,
        temperature: float | None,
        wanted: list[bool],
    ) -> LinearForward: ...

class DenseForward:
    def write_loss(self, address: int, length: int) -> None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def statistics(self) -> list[float]: ...
    def backward(self, dtype: str, logits: _Matrix, upstream: _Vector, gradient: _Vector) -> None: ...

class LinearForward:
    def write_loss(self, address: int, length: int) -> None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def statistics(self) -> list[float]: ...
    def backward(
        self, input: tuple[_Matrix, _Matrix, int, int], upstream: _Vector, gradients: list[_Vector | None]
    ) -> None: ...

class CudaStream:
    def __init__(self, device: int, handle: int, allocate: Callable[[bool, int], int]) -> None: ...

# temperature, token sets, temperature before, loss, results
_Pass = tuple[float | None, int, int, int, int]

class CudaDense:
    def __init__(
        self, stream: CudaStream, loss: Loss, rows: Rows, dtype: str, logits: _Matrix, addresses: _Pass
    ) -> None: ...
    def backward(self, stream: CudaStream, logits: _Matrix, upstream: int, results: int, gradient: int) -> None: ...

class CudaLinear:
    def __init__(
        self,
        stream: CudaStream,
        loss: Loss,
        rows: Rows,
        dtype: str,
        input: tuple[_Matrix, _Matrix, int, int],
        wanted: list[bool],
        addresses: _Pass,
    ) -> None: ...
    def backward(
        self,
        stream: CudaStream,
        input: tuple[_Matrix, _Matrix, int, int],
        upstream: int,
        results: int,
        gradients: list[int | None],
    ) -> None: ...

class BeamSearch:
    def __init__(
        self,
        trie: TokenTrie,
        users: int,
        width: int,
        temperature: float,
        over_vocabulary: bool,
        length_penalty: float,
        exclude: list[list[int]] | None,
    ) -> None: ...
    @property
    def common_prefix(self) -> list[int]: ...
    @property
    def beam_users(self) -> list[int]: ...
    def step(self, dtype: str, logits: _Matrix) -> tuple[list[int], list[list[int]]] | None: ...
    def results(self, user: int) -> list[_Found]: ...

def merge_statistics(one: list[float], other: list[float]) -> list[float]: ...
def mask_scores(
    trie: TokenTrie,
    ids: _Matrix,
    start: int,
    dtype: str,
    scores: _Matrix,
    end: int,
    temperature: float | None,
    to: _Vector,
) -> None: ...
def allowed_tokens(trie: TokenTrie, ids: _Matrix, start: int, vocabulary: int, end: int) -> bytes: ...
def exact_top_k(
    trie: TokenTrie, k: int, temperature: float, model: Callable[[list[list[int]]], tuple[str, _Matrix]]
) -> list[_Found]: ...
