# Someone with a folder of pictures: docs/training/README.md.
python make_pictures.py
fastdiff train --data pets/ --size 8 --flip --test-share 0.1 --out runs/pets --steps 4 --batch-size 4 --widths 8
fastdiff sample --model runs/pets --num 4 --unit 4 --steps 2 --out pets-samples
fastdiff verify pets-samples
