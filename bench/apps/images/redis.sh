#!/bin/sh
# The entrypoint of the test's Redis image: the server, as the user redis, in the directory that is its volume.
set -eu

if [ "$(id -u)" = 0 ]; then
    chown -R redis .
    exec su -s /bin/sh -- redis "$0" "$@"
fi

exec "$@"
