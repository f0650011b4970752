# Someone whose cluster kills workers: docs/jobs.md, "Several workers" and "When something goes wrong".
run="--ids 0-31 --unit 2 --steps 4 --threads 1 --seed 3"
fastdiff sample --out run $run --shard 0/2 2> first.txt &
first=$!
fastdiff sample --out run $run --shard 1/2 2> second.txt &
second=$!
while ! ls run/units/*/*.json > names.txt 2> none.txt; do sleep 0.1; done
kill -9 "$first" "$second" || true
wait "$first" "$second" || true
test ! -e run/manifest.jsonl  # it is not complete
fastdiff resume run
fastdiff verify run --recompute 1
