"""Examples at the end of each command's help; docs/cli.md and the tests show and parse them."""

EXAMPLES = {
    "sensorium": """
        sensorium demo
        sensorium data photos/
        sensorium train clip photos/ --out runs/photos
        sensorium index runs/photos photos/
        sensorium search runs/photos "a red bicycle" --out results.html
        sensorium --use points.py data scans.csv""",
    "data": """
        sensorium data photos/
        sensorium data products.csv --type price=ignore --group product_id
        sensorium data emoji --json
        sensorium data scenes --source-option n=5000 --source-option size=64
        sensorium data build emoji --full --out emoji-full""",
    "data build": """
        sensorium data build emoji --out emoji-64
        sensorium data build emoji --full --packages tarballs/ --out emoji-full""",
    "train": """
        sensorium train clip --help
        sensorium train clip photos/ --dim 256 --epochs 5
        sensorium train clip photos/ --out runs/photos --resume
        sensorium train fusion products.csv --target price --columns photo --columns title
        sensorium train ./mine.py:recipe photos/""",
    "compare": """
        sensorium compare fusion products.csv --target price
        sensorium compare fusion products.csv --target price --fusion concat,sum,gated --folds 5
        sensorium compare clip photos/ --dim 128,256 --epochs 5 --out runs/widths""",
    "evaluate": """
        sensorium evaluate runs/photos
        sensorium evaluate runs/photos photos/ --split test --json
        sensorium evaluate runs/emoji emoji --text-column caption_de
        sensorium evaluate openai/clip-vit-base-patch32 photos/""",
    "interpolate": """
        sensorium interpolate runs/photos
        sensorium interpolate runs/photos --reference old-photos/
        sensorium interpolate runs/photos --alpha 0.6 --out runs/photos-interpolated""",
    "index": """
        sensorium index runs/photos photos/
        sensorium index runs/photos new-photos/ --out new.index
        sensorium index photos/ --model openai/clip-vit-base-patch32""",
    "search": """
        sensorium search runs/photos "a red bicycle"
        sensorium search runs/photos --image a.jpg -k 20 --out results.html
        sensorium search photos.index "at night" --image a.jpg --json""",
    "generate": """
        sensorium generate runs/dalle "a red apple" -o apple.png
        sensorium generate runs/dalle "a red apple" "a blue fish" -n 6 -o grid.png
        sensorium generate runs/dalle "a red apple" --guidance-scale 3 --seed 1 -o guided.png
        sensorium generate runs/dalle "a red apple" --rerank runs/clip --candidates 16 -o best.png
        sensorium generate runs/imagen "a blue door" --image house.png --mask door.png -o door.png
        sensorium generate runs/captioner --image apple.png
        sensorium generate runs/vqa --image scene.png --question "what colour is the circle?"
        sensorium generate runs/gpt "once upon a time" --temperature 0.8 --seed 1
        sensorium generate openai/whisper-tiny --audio call.wav""",
    "predict": """
        sensorium train fusion products.csv --target price --out runs/price
        sensorium predict runs/price new.csv -o priced.csv
        sensorium predict microsoft/resnet-50 photos/ -o classes.csv""",
    "classify": """
        sensorium classify openai/clip-vit-base-patch32 photos/ --label cat --label "a dog"
        sensorium classify runs/photos a.jpg b.jpg --labels words.txt --template "ein Bild: {}"
        sensorium classify runs/photos products.csv --class-column type -o types.csv""",
    "export": """
        sensorium export runs/photos --format hf --out photos-clip
        sensorium export runs/photos --format open_clip --out photos-open-clip
        sensorium export runs/houses --format onnx --out houses-onnx""",
    "summary": """
        sensorium summary clip --dim 1024 --image-layers 24
        sensorium summary clip --data photos/ --batch-size 512
        sensorium summary runs/photos
        sensorium summary openai/clip-vit-base-patch32""",
    "convert-checkpoint": """
        sensorium convert-checkpoint pytorch_model.bin
        sensorium convert-checkpoint last.ckpt --key ema_state_dict --out model.safetensors""",
    "demo": """
        sensorium demo
        sensorium demo --out somewhere""",
    "doctor": """
        sensorium doctor
        sensorium doctor --json""",
    "completion": """
        sensorium completion bash > ~/.local/share/bash-completion/completions/sensorium""",
}


def format_examples(command: str) -> str:
    """Return the examples of a command as the end of its help."""
    return "Examples:" + EXAMPLES[command].replace("\n        ", "\n  ")
