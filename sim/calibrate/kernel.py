"""The kernel that stamps the GPU's clock, as PTX: the driver compiles it, no toolkit is needed.

Every thread computes until its time is over. The first one also reads `globaltimer` in each turn,
and stores the two readings wherever they are further apart than a limit. The values that are
computed keep 24 registers in use, so that a switch has them to save.
"""

from __future__ import annotations

NAME = "stamp"
HEADER_BYTES = 32
"""Four numbers of 64 bits: begin, end, gaps seen, and one that is not used."""
GAP_BYTES = 16
THREADS = 256
"""Of a block that fills the GPU: with about 40 registers each, six of them fill an SM's 65,536."""
MOST_TURNS = 2**31
"""A turn takes 0.1 us or more: should the clock stand still, the kernel ends all the same."""

_VALUES = 24


def ptx() -> str:
    """For every GPU from Pascal on (which can preempt a kernel anywhere)."""
    values = range(_VALUES)
    start = "\n".join(f"    add.u32 %v{n}, %thread, {n};" for n in values)
    work = "\n".join(
        f"    mad.lo.u32 %v{n}, %v{n}, %v{(n + 1) % _VALUES}, %v{(n + 7) % _VALUES};"
        for n in values
    )
    total = "\n".join(f"    xor.b32 %sum, %sum, %v{n};" for n in values)
    return f"""
.version 6.0
.target sm_60
.address_size 64

.visible .entry {NAME}(
    .param .u64 out_param,
    .param .u64 span_param,
    .param .u64 least_param,
    .param .u32 room_param,
    .param .u32 most_param
)
{{
    .reg .pred %keeper, %is, %other;
    .reg .u64 %out, %span, %least, %begin, %last, %now, %gap, %at, %all;
    .reg .u32 %room, %most, %thread, %block, %seen, %turn, %sum, %v<{_VALUES}>;

    ld.param.u64 %out, [out_param];
    cvta.to.global.u64 %out, %out;
    ld.param.u64 %span, [span_param];
    ld.param.u64 %least, [least_param];
    ld.param.u32 %room, [room_param];
    ld.param.u32 %most, [most_param];
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    or.b32 %sum, %thread, %block;
    setp.eq.u32 %keeper, %sum, 0;
    mov.u32 %seen, 0;
    mov.u32 %turn, 0;
{start}
    mov.u64 %begin, %globaltimer;
    mov.u64 %last, %begin;
AGAIN:
{work}
    mov.u64 %now, %globaltimer;
    sub.u64 %gap, %now, %last;
    setp.ge.u64 %is, %gap, %least;
    and.pred %is, %is, %keeper;
    @!%is bra NEXT;
    setp.ge.u32 %other, %seen, %room;
    @%other bra COUNT;
    mul.wide.u32 %at, %seen, {GAP_BYTES};
    add.u64 %at, %at, %out;
    st.global.u64 [%at+{HEADER_BYTES}], %last;
    st.global.u64 [%at+{HEADER_BYTES + 8}], %now;
COUNT:
    add.u32 %seen, %seen, 1;
NEXT:
    mov.u64 %last, %now;
    add.u32 %turn, %turn, 1;
    setp.ge.u32 %other, %turn, %most;
    @%other bra DONE;
    sub.u64 %gap, %now, %begin;
    setp.lt.u64 %is, %gap, %span;
    @%is bra AGAIN;
DONE:
{total}
    setp.eq.u32 %other, %sum, 0x9e3779b9;
    @%other st.global.u32 [%out+24], %sum;
    @!%keeper bra END;
    cvt.u64.u32 %all, %seen;
    st.global.u64 [%out], %begin;
    st.global.u64 [%out+8], %now;
    st.global.u64 [%out+16], %all;
END:
    ret;
}}
"""
