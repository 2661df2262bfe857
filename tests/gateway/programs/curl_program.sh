#!/bin/sh
# A script with curl: it asks until it is told that there is no more, and then once more.
ask() { # ask CURL'S OPTIONS... < BODY
  curl --silent --show-error --header "authorization: Bearer $OPENAI_API_KEY" --header "content-type: application/json" \
    --data-binary @- "$@" "$OPENAI_BASE_URL/chat/completions"
}
body() { # body TEXT [MORE FIELDS]
  printf '{"model": "house-small", "max_tokens": 60, "messages": [{"role": "user", "content": "%s"}]%s}' "$1" "$2"
}
for way in stall slow; do
  body "[$way] Why is the sky blue?" ', "stream": true' | ask --no-buffer |
    sed -u -n "s/^data: .*\"content\": *\"\([^\"]*\)\".*/{\"call\": \"$way chat\", \"text\": \"\1\"}/p"
done
number=0 status=200
while [ "$status" = 200 ]; do
  number=$((number + 1))
  status=$(body "Why is the sky blue? $number" | ask --output /dev/null --write-out '%{http_code}')
  echo "{\"call\": \"asked\", \"text\": \"$status\"}"
done
body "Why is the sky blue? $number" | ask
echo
