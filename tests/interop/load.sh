#!/usr/bin/env bash
# Load on both faces, by h2load and wrk: bounded, and no call may fail.
#
# h2load counts HTTP statuses alone, and a failed gRPC call has status 200; so kmsgate's own count
# of calls that succeeded must grow by as many. REQUESTS is how many calls h2load makes,
# SECONDS_OF_WRK how long wrk runs.
source "$(dirname "$0")/common.sh"
load_env "$@"

requests=${REQUESTS:-200000}
seconds=${SECONDS_OF_WRK:-5}

# A gRPC frame (a zero byte, the length in four) around an EncryptDataRequest {key_id = 2,
# plain_text = 3}.
python3 - "$KMSGATE_AES_KEY" >"$scratch/frame" <<'PYTHON'
import sys

def field(number, value):
    return bytes([number << 3 | 2, len(value)]) + value

message = field(2, sys.argv[1].encode()) + field(3, b"hello world")
sys.stdout.buffer.write(bytes([0]) + len(message).to_bytes(4, "big") + message)
PYTHON

# How many EncryptData calls have succeeded on a face, as /metrics tells: `succeeded grpc`.
succeeded() {
  curl --silent --fail --max-time 5 "http://$KMSGATE_ADMIN/metrics" |
    awk -v face="face=\"$1\"" '/^kmsgate_requests_total\{/ && /EncryptData|encrypt-data/ && /code="OK"/ && index($0, face) { n += $NF } END { print n + 0 }'
}

before=$(succeeded grpc)
timeout $((60 + requests / 1000)) h2load --requests="$requests" --clients=4 --max-concurrent-streams=16 --data="$scratch/frame" \
  --header='content-type: application/grpc' --header='te: trailers' --header="x-auth-token: $KMSGATE_TOKEN" \
  "http://$KMSGATE_GRPC/kmsgate.v1.CryptoService/EncryptData" >"$scratch/h2load"
grep -E '^(finished|requests:|time for request)' "$scratch/h2load" >&2
grep -q "^requests: $requests total, $requests started, $requests done, $requests succeeded, 0 failed, 0 errored, 0 timeout" \
  "$scratch/h2load" || fail "$(<"$scratch/h2load")"
equal "calls that succeeded" $((before + requests)) "$(succeeded grpc)"
ok "$requests gRPC calls, none failed"

cat >"$scratch/encrypt.lua" <<LUA
wrk.method = "POST"
wrk.body = '{"key_id":"$KMSGATE_AES_KEY","plain_text":"hello world"}'
wrk.headers["content-type"] = "application/json"
wrk.headers["x-auth-token"] = "$KMSGATE_TOKEN"

-- Two statuses are failures to us that are none to wrk: any success but 200, and a redirection.
local others = 0
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init()
  not_200 = 0
end

function response(status)
  if status ~= 200 then
    not_200 = not_200 + 1
  end
end

function done(summary, latency)
  for _, thread in ipairs(threads) do
    others = others + thread:get("not_200")
  end
  local errors = summary.errors
  print(string.format("wrk: %d requests, %d not 200, %d socket errors, median %.2f ms, 99%% %.2f ms",
    summary.requests, others, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
LUA
timeout $((30 + seconds)) wrk --threads 1 --connections 16 --duration "${seconds}s" --script "$scratch/encrypt.lua" \
  "$rest/encrypt-data" >"$scratch/wrk"
line=$(grep '^wrk:' "$scratch/wrk")
echo "$line" >&2
[[ $line =~ ^wrk:\ [1-9][0-9]*\ requests,\ 0\ not\ 200,\ 0\ socket\ errors ]] || fail "$(<"$scratch/wrk")"
ok "$seconds s of REST calls, none failed"
