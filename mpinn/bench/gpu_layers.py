"""Dense layers on a GPU, measured both ways: by epilogues of products, and by products and kernels of our own."""

from collections.abc import Callable, Iterator

from mpinn.bench.gpu_bench import Bench, Call, Maker
from mpinn.bench.gpu_roofline import Demand


def layers(batch: int, inputs: int, outputs: int, demand: Demand) -> Iterator[Bench]:
    """Forward, and the gradients of the parameters; ``demand``: of a product. In bfloat16 both ways are one."""
    size = f"{batch}x{inputs}x{outputs}"

    def forward(m: Maker) -> Call:
        x, weight, bias = m.activations(batch, inputs), m.parameters(inputs, outputs), m.parameters(outputs)
        return lambda: m.ops.affine(x, weight, bias, "relu", m.pool)

    def gradients(m: Maker) -> Call:
        x, dz = m.activations(batch, inputs), m.activations(batch, outputs)
        weight, bias = m.zeros(inputs, outputs), m.zeros(outputs)
        return lambda: m.ops.affine_gradients(x, dz, weight, bias, m.pool)

    for name, make in (("dense, relu", forward), ("dense, dW and db", gradients)):
        yield Bench(name, size, demand, make)
        yield Bench(f"{name}, apart", size, demand, _apart(make))


def _apart(make: Callable[[Maker], Call]) -> Callable[[Maker], Call]:
    """Without epilogues."""

    def made(m: Maker) -> Call:
        call, choices = make(m), m.ops.Choices

        def run() -> object:
            before, choices.epilogues = choices.epilogues, False
            try:
                return call()
            finally:
                choices.epilogues = before

        return run

    return made
