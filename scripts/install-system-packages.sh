#!/bin/sh
# Installs the named Debian packages that are missing; says nothing when there is nothing to do.
# Usage: scripts/install-system-packages.sh wrk [...]
set -eu

missing=""
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
install_missing() {
    # $missing is a list of words on purpose.
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends $missing >"$log" 2>&1
}

# The package lists are fetched only when the ones at hand do not do: they may be absent or stale.
install_missing && exit 0
$as_root apt-get update >"$log" 2>&1 && install_missing && exit 0
cat "$log" >&2
echo "install-system-packages: could not install:$missing" >&2
exit 1
