#!/usr/bin/env bash
# Takes the README's pictures of a trace, light and dark: needs the installed package and Chromium.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
problem="Lucy has 36 apples, gives Omar a quarter of them and then gets 5 new ones. How many has Lucy now?"
unite demo --problem "$problem" --trace "$work/trace.html" >/dev/null
for scheme in light dark; do
  chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync \
    --user-data-dir="$work/$scheme" --hide-scrollbars --force-device-scale-factor=1.5 --window-size=1080,640 \
    --blink-settings=preferredColorScheme=$([ $scheme = dark ] && echo 0 || echo 1) \
    --screenshot="$PWD/trace-$scheme.png" "file://$work/trace.html#20" 2>/dev/null
done
