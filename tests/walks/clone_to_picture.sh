# Someone who has just cloned the repository: README, "On the command line".
fastdiff sample --out shoes --classes "Sneaker,Ankle boot" --num 4 --unit 4 --steps 4 --seed 7
fastdiff export shoes --format png --out shoes-png
test -s shoes/grid.png
test "$(find shoes-png -name '*.png' | wc -l)" -eq 4
