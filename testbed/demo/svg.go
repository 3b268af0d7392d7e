package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// The measures of the picture of a terminal, in pixels.
const (
	cellWidth, cellHeight = 8.4, 19
	fontSize              = 14
	padding               = 18
	titleHeight           = 34
	baseline              = 14 // below the top of a cell
)

// svg returns the frame as a picture of a terminal. Each piece of text is given its width, so that the cells stand in
// line whatever font there is.
func (f *frame) svg(title string) []byte {
	width := 2*padding + float64(f.width)*cellWidth
	height := titleHeight + 2*padding + len(f.lines)*cellHeight
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%d" viewBox="0 0 %.0f %d"
 role="img" aria-label="%s">
<style>text { font: %dpx ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
 fill: #e6edf3 }</style>
<rect x="0.5" y="0.5" width="%.0f" height="%d" rx="10" fill="#0d1117" stroke="#30363d"/>
`, width, height, width, height, escape(title), fontSize, width-1, height-1)
	for i, fill := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		fmt.Fprintf(&b, "<circle cx=\"%d\" cy=\"20\" r=\"6\" fill=\"%s\"/>\n", 22+20*i, fill)
	}
	fmt.Fprintf(&b, "<text x=\"%.0f\" y=\"25\" text-anchor=\"middle\" style=\"fill: %s\">%s</text>\n", width/2,
		grey.hex, escape(title))
	for i, line := range f.lines {
		top := titleHeight + padding + i*cellHeight
		runs(trim(line), func(column int, text string, s style) {
			l, cells := palette[s], utf8.RuneCountInString(text)
			if l.back.hex != "" {
				fmt.Fprintf(&b, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n",
					x(column), top+1, float64(cells)*cellWidth+0.3, cellHeight-3, l.back.hex)
			}
			for _, at := range wideText.FindAllStringIndex(text, -1) {
				before, words := utf8.RuneCountInString(text[:at[0]]), text[at[0]:at[1]]
				fmt.Fprintf(&b,
					"<text x=\"%.1f\" y=\"%d\" textLength=\"%.1f\" lengthAdjust=\"spacingAndGlyphs\"%s>%s</text>\n",
					x(column+before), top+baseline, float64(utf8.RuneCountInString(words))*cellWidth, l.css(),
					escape(words))
			}
		})
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// wideText finds what stands between wide spaces, which XML does not keep.
var wideText = regexp.MustCompile(`\S+( \S+)*`)

func x(column int) float64 { return padding + float64(column)*cellWidth }

func (l look) css() string {
	var css []string
	if l.fore.hex != "" {
		css = append(css, "fill: "+l.fore.hex)
	}
	if l.bold {
		css = append(css, "font-weight: bold")
	}
	if css == nil {
		return ""
	}
	return ` style="` + strings.Join(css, "; ") + `"`
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
