package main

import (
	"encoding/xml"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A style is a rule of the page's style sheet.
type style struct{ selector, declarations string }

// styles returns the rules of a page for a narrow screen: all but those for wide ones, of which there are none.
func styles(page string) (all []style) {
	_, sheet, _ := strings.Cut(page, "<style>")
	sheet, _, _ = strings.Cut(sheet, "</style>")
	for _, m := range regexp.MustCompile(`([^{}]+)\{([^{}]*)\}`).FindAllStringSubmatch(sheet, -1) {
		for selector := range strings.SplitSeq(m[1], ",") {
			all = append(all, style{strings.TrimSpace(selector), m[2]})
		}
	}
	return all
}

// On a phone, whose screen is 390 pixels wide, the page does not scroll sideways: only its tables do, within their
// elements. Outside of these no rule gives a width beyond that, and words that may be long break or are cut. It is read
// here, and drawn by no browser.
func TestReportOnPhone(t *testing.T) {
	const (
		screen = 390 - 2*16 // without the padding of the body
		word   = 40         // characters that fit
	)
	long := strings.Repeat("x", 150)
	changes := append(story()[:10], change{Time: now.Add(96 * time.Second), Namespace: long, Name: long, Status: held,
		Holder: long, DurationSeconds: 15})
	changes = append(changes, groupStory()...)
	for i, c := range changes {
		if c.Key == "b" {
			changes[i].Key = long
		}
	}
	page := pageOf(t, changes)
	if !strings.Contains(page, `<meta name="viewport" content="width=device-width, initial-scale=1">`) {
		t.Error("a phone draws it as wide as on a desk")
	}

	var scrolls, wide, breaks, cuts []string // selectors
	length := regexp.MustCompile(`([\d.]+)(px|rem|%)`)
	fixed := regexp.MustCompile(`(?:^|[;\s])(?:min-)?width:\s*([^;]+)`)
	columns := regexp.MustCompile(`grid-template-columns:\s*([^;]+)`)
	smallest := regexp.MustCompile(`minmax\(([^,]+),[^)]*\)`)
	pixels := func(text string) (sum float64) {
		for _, m := range length.FindAllStringSubmatch(text, -1) {
			n, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n * map[string]float64{"px": 1, "rem": 16, "%": screen / 100.}[m[2]]
		}
		return sum
	}
	for _, s := range styles(page) {
		least := 0.0
		for _, m := range fixed.FindAllStringSubmatch(s.declarations, -1) {
			least = max(least, pixels(m[1]))
		}
		for _, m := range columns.FindAllStringSubmatch(s.declarations, -1) {
			least = max(least, pixels(smallest.ReplaceAllString(m[1], "$1")))
		}
		for to, has := range map[*[]string]bool{
			&wide:    least > screen,
			&scrolls: strings.Contains(s.declarations, "overflow-x: auto"),
			&breaks:  strings.Contains(s.declarations, "overflow-wrap: anywhere"),
			&cuts:    strings.Contains(s.declarations, "text-overflow: ellipsis"),
		} {
			if has {
				*to = append(*to, s.selector)
			}
		}
	}
	if !slices.Equal(wide, []string{".group table"}) || !slices.Equal(scrolls, []string{"details"}) ||
		!slices.Equal(cuts, []string{".name > :first-child"}) {
		t.Fatalf("this test does not know what is wide: %q, scrolls: %q, is cut: %q", wide, scrolls, cuts)
	}

	type element struct{ tag, class, style string }
	var open []element
	within := func(match func(element) bool) bool { return slices.ContainsFunc(open, match) }
	scrolling := func(e element) bool { return e.tag == "details" }
	tables, words := 0, 0
	text := xml.NewDecoder(strings.NewReader(page))
	text.Strict, text.AutoClose, text.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	for {
		token, err := text.Token()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{tag: token.Name.Local}
			for _, a := range token.Attr {
				switch a.Name.Local {
				case "class":
					e.class = a.Value
				case "style":
					e.style = a.Value
				}
			}
			open = append(open, e)
			if e.tag == "table" {
				tables++
				if !within(scrolling) {
					t.Error("a table that does not scroll by itself")
				}
			}
			if regexp.MustCompile(`\d(px|r?em|ch|vw)`).MatchString(e.style) {
				t.Errorf("<%s style=%q>", e.tag, e.style)
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) == 0 || open[len(open)-1].tag == "style" || within(scrolling) {
				continue
			}
			in := open[len(open)-1]
			cut := len(open) > 1 && open[len(open)-2].class == "name"
			for _, w := range strings.Fields(string(token)) {
				if len([]rune(w)) <= word {
					continue
				}
				words++
				if !cut && !slices.Contains(breaks, in.tag) {
					t.Errorf("<%s> has a word that is neither broken nor cut: %.60s…", in.tag, w)
				}
			}
		}
	}
	if tables < 5 || words < 3 {
		t.Errorf("%d tables and %d long words found", tables, words)
	}
}
