#!/bin/sh
# Starts Redis for themes. REDIS_PASSWORD is the password of the user `themes`, REDIS_MAXMEMORY the memory that it may
# use; arguments go to redis-server. The password itself is in no file and in no list of processes.
set -eu
umask 077
here=$(dirname "$0")
case ${REDIS_PASSWORD:-} in
'' | *[!A-Za-z0-9_-]*)
    echo "REDIS_PASSWORD: expected letters, digits, - and _ alone, because it stands in a URL: openssl rand -hex 24" >&2
    exit 2
    ;;
esac
sum=$(printf %s "$REDIS_PASSWORD" | sha256sum)
users=${TMPDIR:-/tmp}/users.acl
sed "s/#PASSWORD/#${sum%% *}/" "$here/users.acl" >"$users"
unset REDIS_PASSWORD
exec redis-server "$here/redis.conf" --aclfile "$users" --maxmemory "${REDIS_MAXMEMORY:-1gb}" "$@"
