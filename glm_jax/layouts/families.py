"""The layouts by name."""

from glm_jax.errors import UserError
from glm_jax.layouts import chatglm, chatglm2, glm, glm_130b, glm_2021, glm_jax
from glm_jax.layouts.table import Layout

LAYOUTS = {
    layout.name: layout
    for layout in (
        glm_jax.LAYOUT,
        glm_2021.LAYOUT,
        glm_130b.LAYOUT,
        chatglm.LAYOUT,
        chatglm2.LAYOUT,
        glm.GLM,
        glm.GLM4,
    )
}


def find_layout(name: str) -> Layout:
    """Raises: UserError: there is no layout of that name."""
    if name not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]
