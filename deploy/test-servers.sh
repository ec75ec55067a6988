#!/bin/sh
# Installs the Debian or Ubuntu packages that the tests need: servers that each test starts privately, Chromium with Chinese
# fonts, Prometheus for promtool, and Node.
# Installs missing packages with root and apt-get; otherwise names them and exits 2. It starts and enables no system service.
set -eu
packages="nginx libnginx-mod-rtmp postgresql pgbouncer rabbitmq-server chromium fonts-noto-cjk prometheus"

missing=""
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
# Node often comes from another source; then Debian's package must not be added.
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
[ -n "$missing" ] || exit 0

by_hand() {
    echo "recorder: $1:$missing" >&2
    echo "          On Debian or Ubuntu, as root:  apt-get install --no-install-recommends$missing" >&2
    exit 2
}

[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || by_hand "the tests need packages that are not installed"

# A package starts its service when it is installed, unless policy-rc.d forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
echo "recorder: installing for the tests:$missing"
get="apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300"
$get update || echo "recorder: apt-get update failed; continuing with the present lists." >&2
# shellcheck disable=SC2086 # split into words on purpose
$get install --no-install-recommends $missing >/dev/null || by_hand "these could not be installed"
if [ -d /run/systemd/system ]; then
    for package in $missing; do
        systemctl disable --quiet --now "$package" 2>/dev/null || true
    done
fi
