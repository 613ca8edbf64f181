// A slide with more on it than fits is set in smaller type, down to half the size.
const HEIGHT = 720;

function fit(slide) {
    slide.style.fontSize = "";
    for (let percent = 95; slide.scrollHeight > HEIGHT && percent >= 50; percent -= 5) {
        slide.style.fontSize = `${percent}%`;
    }
}

Reveal.on("ready", (event) => fit(event.currentSlide));
Reveal.on("slidechanged", (event) => fit(event.currentSlide));
Reveal.on("pdf-ready", () => Reveal.getSlides().forEach(fit));
Reveal.initialize({
    width: 1280,
    height: HEIGHT,
    margin: 0,
    center: false,
    hash: true,
    transition: "none",
    slideNumber: "c/t",
    pdfSeparateFragments: false,
});
