r"""What keys, tokens and passwords look like, as services issue them.

Each shape has a word without which it cannot be in a line. Looking for the word is quick, so a line
without it is not searched. Not here: personal data, and how a line is read (`pii`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["has_secret"]

_UUID = rb"[a-f0-9]{8}-(?:[a-f0-9]{4}-){3}[a-f0-9]{12}\b"
_SHAPES = {
    "sk-": rb"\bc?sk-[\w-]{20,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek, Cerebras
    "sk_": rb"\b(?:sk_(?:live|test)_[A-Za-z0-9]{16,}|(?:pc)?sk_(?=\w{0,99}\d)\w{40,})",
    "rk_": rb"\brk_(?:live|test)_[A-Za-z0-9]{16,}",
    "whsec_": rb"\bwhsec_[A-Za-z0-9+/]{24,}",
    "AKIA": rb"\bAKIA[0-9A-Z]{16}\b",
    "ASIA": rb"\bASIA[0-9A-Z]{16}\b",
    "ABSK": rb"\bABSK[A-Za-z0-9+/]{100,}",  # Bedrock
    "AccountKey=": rb"AccountKey=[A-Za-z0-9+/=]{60,}",
    "JQQJ9": rb"\b[A-Za-z0-9]{40,60}JQQJ9[A-Za-z0-9]{16,}",  # Azure
    "Q~": rb"[\w.~-]{3}\dQ~[\w.~-]{31,34}",  # Azure AD
    "sig=": rb"[?&]sig=[\w%/+-]{40,}",
    "AIza": rb"\bAIza[\w-]{35}",
    "AQ.": rb"\bAQ\.[\w-]{40,}",
    "GOCSPX-": rb"\bGOCSPX-[\w-]{28}",
    "ya29.": rb"\bya29\.[\w-]{20,}",
    "1//0": rb"\b1//0[\w-]{40,}",
    "ghp_ gho_ ghu_ ghs_ ghr_": rb"\bgh[pousr]_[A-Za-z0-9]{36,}",
    "github_pat_": rb"\bgithub_pat_\w{40,}",
    "glpat- glptt- gldt- glrt- glrtr- glcbt- glft- glsoat- glimt- glagent- gloas- glffct-":
        rb"\bgl[a-z]{2,5}-[\w-]{20,}",
    "xoxa- xoxb- xoxc- xoxd- xoxe- xoxo- xoxp- xoxr- xoxs-": rb"\bxox[abcdeoprs]-[\w%-]{10,}",
    "xapp-": rb"\bxapp-\d-[\w-]{10,}",
    "hooks.slack.com": rb"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,}",
    "api/webhooks/": rb"discord(?:app)?\.com/api/webhooks/\d{10,}/[\w-]{50,}",
    "hf_": rb"\bhf_[A-Za-z0-9]{30,}",
    "npm_": rb"\bnpm_[A-Za-z0-9]{36}",
    "pypi-": rb"\bpypi-AgE[\w-]{50,}",
    "rubygems_": rb"\brubygems_[a-f0-9]{48}",
    "dckr_pat_ dckr_oat_": rb"\bdckr_(?:pat|oat)_[\w-]{20,}",
    "SG.": rb"\bSG\.[\w-]{16,}\.[\w-]{16,}",
    "eyJ": rb"(?:\b|_)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}|\bops_eyJ[\w-]{100,}",
    "dop_v1_ doo_v1_ dor_v1_": rb"\bdo[por]_v1_[a-f0-9]{64}",
    "tgp_v1_": rb"\btgp_v1_[\w-]{40,}",
    "wandb_v1_": rb"\bwandb_v1_\w{40,}",
    "gsk_": rb"\bgsk_[A-Za-z0-9]{40,}",
    "xai-": rb"\bxai-[A-Za-z0-9]{40,}",
    "r8_": rb"\br8_[A-Za-z0-9]{30,}",
    "nvapi-": rb"\bnvapi-[\w-]{40,}",
    "pplx-": rb"\bpplx-[A-Za-z0-9]{40,}",
    "tml-": rb"\btml-(?=[\w-]{0,99}\d)[\w-]{30,}",
    "lsv2_": rb"\blsv2_(?:pt|sk)_[a-f0-9]{32}_[a-f0-9]{10}",
    "tvly-": rb"\btvly-[\w-]{20,}",
    "jina_": rb"\bjina_(?=\w{0,99}\d)[\w-]{40,}",
    "fw_": rb"\bfw_(?=\w{0,99}\d)[A-Za-z0-9]{22,}",
    "fc-": rb"\bfc-[a-f0-9]{32}\b",
    "e2b_": rb"\be2b_[a-f0-9]{40}",
    "lin_api_ lin_oauth_": rb"\blin_(?:api|oauth)_[A-Za-z0-9]{30,}",
    ":AA": rb"\b\d{8,10}:AA[\w-]{32,}",  # Telegram
    "dapi": rb"\bdapi[a-f0-9]{32}",
    "shpat_ shpca_ shppa_ shpss_": rb"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    "hvs. hvb. hvr.": rb"\bhv[sbr]\.[\w-]{24,}",
    ".atlasv1.": rb"\b[A-Za-z0-9]{14}\.atlasv1\.[\w-]{60,}",
    "glsa_": rb"\bglsa_\w{32,}",
    "glc_": rb"\bglc_[A-Za-z0-9+/=]{32,}",
    "figd_": rb"\bfigd_[\w-]{30,}",
    "sbp_": rb"\bsbp_[a-f0-9]{40}",
    "sb_secret_": rb"\bsb_secret_[\w-]{20,}",
    "ntn_": rb"\bntn_[A-Za-z0-9]{40,}",
    "secret_": rb"\bsecret_(?=\w{0,99}\d)[A-Za-z0-9]{43}\b",
    "ATATT3": rb"\bATATT3[\w=-]{40,}",
    "pat": rb"\bpat[A-Za-z0-9]{14}\.[a-f0-9]{64}",  # Airtable
    "PMAK-": rb"\bPMAK-[a-f0-9]{24}-[a-f0-9]{34}",
    "dp.": rb"\bdp\.(?:pt|st|ct|sa|scim|audit)\.[\w.-]{40,}",
    "NRAK-": rb"\bNRAK-[A-Z0-9]{27}",
    "sntrys_ sntryu_": rb"\bsntry[su]_[\w+/=-]{60,}",
    "pscale_": rb"\bpscale_(?:tkn|pw|oauth)_[\w.-]{30,}",
    "nfp_": rb"\bnfp_[A-Za-z0-9]{36,}",
    "rnd_": rb"\brnd_(?=\w{0,99}\d)[A-Za-z0-9]{28,}",
    "HRKU-": rb"\bHRKU-[\w-]{36,}",
    "sq0atp- sq0csp- sq0idp-": rb"\bsq0(?:atp|csp|idp)-[\w-]{22,}",
    "EAA": rb"\bEAA(?=\w{0,99}\d)[A-Za-z0-9]{80,}",
    "key-": rb"\bkey-[a-f0-9]{32}\b",
    "-us": rb"\b[a-f0-9]{32}-us\d{1,2}\b",
    "SK": rb"\bSK[a-f0-9]{32}\b",
    "AGE-SECRET-KEY-": rb"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    "cfut_ cfat_ cfk_": rb"\bcf(?:ut|at|k)_[A-Za-z0-9]{40,}",
    "v1.0-": rb"\bv1\.0-[a-f0-9]{24}-[a-f0-9]{100,}",  # Cloudflare, certificates
    "vcp_ vci_ vca_ vcr_ vck_": rb"\bvc[piark]_(?=\w{0,99}\d)[A-Za-z0-9]{24,}",
    "vercel_blob_rw_": rb"\bvercel_blob_rw_\w{30,}",
    "phx_": rb"\bphx_[A-Za-z0-9]{40,}",
    "pa-": rb"\bpa-(?=[\w-]{0,99}\d)(?=[\w-]{0,99}[A-Z])[\w-]{40,}",  # Voyage
    "key_": rb"\bkey_[a-f0-9]{64}\b",
    "napi_": rb"\bnapi_[a-z0-9]{60,}",
    "re_": rb"\bre_(?=\w{0,33}\d)[A-Za-z0-9]{8}_[A-Za-z0-9]{24}\b",  # Resend
    "xkeysib- xsmtpsib-": rb"\bx(?:key|smtp)sib-[a-f0-9]{64}-\w{16}",
    "pk_": rb"\bpk_\d{6,}_[A-Z0-9]{32}",  # ClickUp
    "FlyV1": rb"\bFlyV1 fm\d\w?_[\w+/=,-]{40,}",
    "fo1_": rb"\bfo1_[\w-]{43}",
    "ak- as-": rb"\ba[ks]-(?=\w{0,21}\d)(?=\w{0,21}[A-Z])[A-Za-z0-9]{22}\b",  # Modal
    "rpa_": rb"\brpa_[A-Z0-9]{40,}",
    "KGAT_": rb"\bKGAT_[a-f0-9]{32}",
    "api_org_": rb"\bapi_org_[A-Za-z0-9]{34}",
    "esecret_": rb"\besecret_[A-Za-z0-9]{24,}",
    "dtn_ pit_": rb"\b(?:dtn|pit)_[a-f0-9]{64}",
    "BSA": rb"\bBSA(?=\w{0,27}\d)(?=\w{0,27}[a-z])[\w-]{27,28}(?![\w-])",  # Brave
    "apify_api_": rb"\bapify_api_[A-Za-z0-9]{34,}",
    "bedrock-api-key-": rb"\bbedrock-api-key-[A-Za-z0-9+/=]{60,}",
    "AZDO": rb"\b[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}\b",
    "AKCp": rb"\bAKCp[A-Za-z0-9]{60,}",
    "cmVmdGtu": rb"\bcmVmdGtu[A-Za-z0-9]{50,}",  # Artifactory
    "sqp_ squ_ sqa_": rb"\bsq[apu]_[a-f0-9]{40}",
    "snyk_": rb"\bsnyk_[su]at\.[\w.-]{30,}",
    "pul-": rb"\bpul-[a-f0-9]{40}",
    "dose": rb"\bdose[a-f0-9]{32}",
    "ddapp_": rb"\bddapp_[A-Za-z0-9]{30,}",
    "sha256~": rb"\bsha256~[\w-]{43}",  # OpenShift
    "CFPAT-": rb"\bCFPAT-[\w-]{40,}",
    "sl.": rb"\bsl\.(?:u\.)?(?=[\w-]{0,99}\d)[\w-]{120,}",  # Dropbox
    "EAAA": rb"\bEAAA(?=[\w-]{0,59}\d)[\w-]{55,}",  # Square
    "shippo_": rb"\bshippo_(?:live|test)_[a-f0-9]{40}",
    "EZAK EZTK": rb"\bEZ[AT]K[A-Za-z0-9]{54}",
    "access-": rb"\baccess-(?:production|development|sandbox)-[a-f0-9-]{36}",  # Plaid
    "SSWS": rb"\bSSWS 00[\w-]{38,}",
    "bkua_": rb"\bbkua_[a-f0-9]{40}",
    "CCIPAT_ CCIPRJ_": rb"\bCCIP(?:AT|RJ)_[A-Za-z0-9]{22}_[a-f0-9]{40}",
    "webhook.office.com": rb"webhook\.office\.com/webhookb2/[\w@/-]{80,}",
    "oy2": rb"\boy2[a-z0-9]{43}\b",  # NuGet
    "cio": rb"\bcio(?=\w{0,31}\d)[A-Za-z0-9]{32}\b",  # crates.io
    "secret- client- console-": rb"\b(?:secret|client|console)-"
        rb"(?=\w{0,99}\d)(?=\w{0,99}[A-Z])(?=\w{0,99}[a-z])[A-Za-z0-9]{36,}\b",  # Statsig
    "sdk- mob- api-": rb"\b(?:sdk|mob|api)-" + _UUID,  # LaunchDarkly
    "tskey-": rb"\btskey-[a-z]+-\w{8,}-\w{20,}",
    "MD MT Mj Mz ND NT Nj Nz OD OT": rb"\b[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}",  # Discord
    "uthorization": rb"[Aa]uthorization[\"']?: ?[\"']?[A-Za-z]{3,12} "
        rb"(?=[\w.:~+/-]{0,99}\d)(?=[\w.:~+/-]{0,99}[A-Za-z])[\w.:~+/-]{24,}",
    "asic": rb"\b[Bb]asic (?=[\w+/]{0,99}\d)(?=[\w+/]{0,99}[A-Z])(?=[\w+/]{0,99}[a-z])"
        rb"[A-Za-z0-9+/]{16,}",
    "earer": rb"\b[Bb]earer (?=[\w.~+/-]{0,99}\d)(?=[\w.~+/-]{0,99}[A-Za-z])[\w.~+/-]{24,}",
}  # fmt: skip
"""A short text that every such key contains -> a pattern for the whole key, with a run of `_RUN`.
"""
_RUN = re.compile(rb"(?<![\w-])[\w-]{16}")
_SHORT_SHAPES = {
    "-----BEGIN": rb"-----BEGIN [A-Z ]*PRIVATE KEY",
    "PuTTY-User-Key-File": rb"PuTTY-User-Key-File-\d: ",
    " -u ": rb" -u [\"']?[\w.@-]{1,64}:(?=[^\s\"']{0,99}\d)[^\s\"'{}<>$]{8,}",  # curl
    "://": rb"(?<=[A-Za-z])://[^\s:/@\"'{}<>$]{1,64}:[^\s:/@\"'{}<>$*]{3,}@[\w.\[-]",
}
"""The same for keys without such a run."""
_NAMES = (b"pass", b"Pass", b"PASS", b"pwd", b"PWD", b"Pwd", b"ecret", b"ECRET", b"oken", b"OKEN",
          b"ey", b"EY")  # fmt: skip
_NAMED = re.compile(
    rb"(?i:passw(?:or)?d|passphrase|(?<![A-Za-z])pass|pwd|secret|token"
    rb"|(?:api|access|private|subscription)[_-]?key)"
    rb"(?:(?:[\"']\s{0,3},?\s{0,3}[\"']value)?[\"']?\s{0,3}[:=]\s{0,3}[\"'](?=[^\s\"']{0,99}\d)[^\s\"'{}<>$]{8,}[\"']"
    rb"|=(?=[^\s&;]{0,99}\d)(?=[^\s&;]{0,99}[a-z])(?=[^\s&;]{0,99}[A-Z])[\w!@#%^*+~-]{8,}+(?![(\[.])"
    rb"|=(?=[^\s\"']{0,99}\d)(?=[^\s\"']{0,99}[A-Za-z])[^\s\"'{}<>$()\[\],;&]{12,}+(?![(\[])"
    rb"|(?<![nN])\s?[:=]\s?(?=\S{0,99}\d)(?=\S{0,99}[a-z])(?=\S{0,99}[A-Z])[\w+/=~-]{20,}+(?![(\[.])"
    rb"|\s?[:=]\s?(?:" + _UUID + rb"|(?=[a-f]{0,99}\d)(?=\d{0,99}[a-f])[a-f0-9]{32,128}\b))"
)
"""A word with a digit that is given to such a name in code or settings: in quotes (also behind
`"name": "password", "value":`), or a longer one behind an equals sign, or one that mixes capitals,
small letters and digits, or a UUID or a long number in hexadecimal."""


def _compiled(shapes: Mapping[str, bytes]) -> list[tuple[bytes, re.Pattern[bytes]]]:
    return [
        (word.encode(), re.compile(shape))
        for words, shape in shapes.items()
        for word in words.split()
    ]


_ALL, _SHORT = _compiled(_SHAPES | _SHORT_SHAPES), _compiled(_SHORT_SHAPES)


def has_secret(text: bytes) -> bool:
    """Whether a text has something that looks like a key, a token or a password."""
    shapes = _ALL if _RUN.search(text) else _SHORT
    return any(word in text and shape.search(text) for word, shape in shapes) or (
        any(name in text for name in _NAMES) and _NAMED.search(text) is not None
    )
