// A slide with more on it than fits is set in smaller type, down to half the size.
const WIDTH = 1280;
const HEIGHT = 720;

function fit(slide) {
    slide.style.fontSize = "";
    const full = () => slide.scrollHeight > HEIGHT || slide.scrollWidth > WIDTH;
    for (let percent = 95; full() && percent >= 50; percent -= 5) {
        slide.style.fontSize = `${percent}%`;
    }
}

// Not in the event itself, when the slide is not laid out yet.
const fitSoon = (event) => requestAnimationFrame(() => fit(event.currentSlide));

Reveal.on("ready", fitSoon);
Reveal.on("slidechanged", fitSoon);
Reveal.on("pdf-ready", () => Reveal.getSlides().forEach(fit));
Reveal.initialize({
    width: WIDTH,
    height: HEIGHT,
    margin: 0,
    center: false,
    hash: true,
    transition: "none",
    slideNumber: "c/t",
    pdfSeparateFragments: false,
});
