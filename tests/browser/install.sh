#!/bin/sh
# Installs Chromium on Debian and its like, where this may be done; elsewhere says what to do. Never fails: the tests that
# need it say so themselves.
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null && exit 0
fi
echo "Chromium is not installed, so the browser tests are skipped. On Debian: apt-get install chromium" >&2
