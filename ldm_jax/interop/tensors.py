"""The one door for weights from elsewhere: the kind of a file is found from its first bytes, never from its name."""

from ldm_jax.core.errors import UserError
from ldm_jax.interop.checks import TensorFile, as_file
from ldm_jax.interop.safetensors_reader import read_safetensors
from ldm_jax.interop.torch_reader import STREAM_START, read_torch_stream, read_torch_zip

__all__ = ["TensorFile", "read_safetensors", "read_tensors", "read_torch_stream", "read_torch_zip"]


def read_tensors(path, *, sha256: str = "") -> TensorFile:
    """Reads `.safetensors` or any file of `torch.save` (`.pt`, `.pth`, `.ckpt`, `.bin`); nothing in it is executed.

    Raises:
      UserError: what the readers raise, and for a file of another kind what it looks like.
    """
    path = as_file(path)
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return read_torch_zip(path, sha256=sha256)
    if head.startswith(STREAM_START):
        return read_torch_stream(path, sha256=sha256)
    if head[8:9] == b"{":
        return read_safetensors(path, sha256=sha256)
    raise UserError(f"{path}: neither safetensors nor a PyTorch file: {_looks_like(head)}")


def _looks_like(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar file; if PyTorch before 0.2 wrote it, load it and save it again with a current torch"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer; fetch the file itself with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "a web page; the download went to an error or login page"
    if head.startswith(b"\x80"):
        return "a bare Python pickle; only tensors saved by torch.save are read"
    return f"it begins with {head[:16]!r}"
