#!/bin/sh
# Starts the tracking server from its environment. What has no default must be set.
#   ISTHMUS_DATABASE             postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE
#   ISTHMUS_ARTIFACTS            s3://BUCKET[/PREFIX]; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and
#                                MLFLOW_S3_ENDPOINT_URL where it is not Amazon's
#   MLFLOW_AUTH_ADMIN_PASSWORD   password of the user admin, for the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY, MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY
#   ISTHMUS_HOST, ISTHMUS_PORT   default: 127.0.0.1 and 5000
set -eu
: "${ISTHMUS_DATABASE:?set it to postgresql+psycopg2://USER:PASSWORD@HOST/DATABASE}"
: "${ISTHMUS_ARTIFACTS:?set it to s3://BUCKET}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?set the first password of admin}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?set it to a random string}"
folder=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# Users lie in the same database as runs, so that every replica knows them: the file names it.
settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
umask 077
sed "s|^database_uri = .*|database_uri = $ISTHMUS_DATABASE|" "$folder/basic_auth.ini" > "$settings"
export MLFLOW_AUTH_CONFIG_PATH="$settings"
exec mlflow server --app-name basic-auth --host "${ISTHMUS_HOST:-127.0.0.1}" --port "${ISTHMUS_PORT:-5000}" \
	--workers "${ISTHMUS_WORKERS:-2}" --backend-store-uri "$ISTHMUS_DATABASE" \
	--artifacts-destination "$ISTHMUS_ARTIFACTS" --serve-artifacts
