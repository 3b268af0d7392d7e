package main

import (
	"fmt"
	"image/color"
	"math"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// leastPlotted is where the axis of time begins; what took less, or came before its time, is drawn there.
const leastPlotted = 0.1e-3

// leastSamples is how many make a distribution.
const leastSamples = 5

// chart draws every sample of what took time on a logarithmic axis, in a lane for each side, and writes it to an SVG or
// PNG file.
func (r *report) chart(file string) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("go run ./testbed/bench on %s: %s", r.Start.Format(time.DateOnly), r.Timing)
	p.X.Label.Text = "time (each point is a sample, the bars are medians)"
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	p.X.Min, p.X.Max = leastPlotted, 30
	p.Legend.Top, p.Legend.Left = true, true
	var labels []string
	for _, row := range r.Rows {
		if row.Unit == "s" && row.ClientGo != nil && row.Leasehold != nil && row.Leasehold.N >= leastSamples {
			labels = append(labels, row.What)
		}
	}
	drawn := 0
	for _, row := range r.Rows {
		if drawn == len(labels) || row.What != labels[drawn] {
			continue
		}
		y := float64(len(labels) - 1 - drawn) // the first one on top
		for i, lane := range []struct {
			name  string
			of    *summary
			color color.Color
		}{
			{"client-go", row.ClientGo, color.RGBA{0xd9, 0x6b, 0x1c, 0xff}},
			{"leasehold", row.Leasehold, color.RGBA{0x1f, 0x6f, 0xb5, 0xff}},
			{"floor", row.Floor, color.RGBA{0x80, 0x80, 0x80, 0xff}},
		} {
			if lane.of == nil {
				continue
			}
			points, err := lane.of.points(y+0.2-0.2*float64(i), lane.color)
			if err != nil {
				return err
			}
			p.Add(points...)
			if drawn == 0 {
				p.Legend.Add(lane.name, points[0].(plot.Thumbnailer))
			}
		}
		drawn++
	}
	if drawn == 0 {
		return fmt.Errorf("nothing to draw in %s: no distribution was measured", file)
	}
	for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
		labels[i], labels[j] = labels[j], labels[i]
	}
	p.NominalY(labels...)
	p.Y.Min, p.Y.Max = -0.5, float64(drawn)+0.2
	p.Add(plotter.NewGrid())
	return p.Save(11*vg.Inch, vg.Length(drawn)*0.7*vg.Inch+vg.Inch, file)
}

// points returns the samples at height y, and a bar at their median.
func (s *summary) points(y float64, c color.Color) ([]plot.Plotter, error) {
	xys := make(plotter.XYs, s.N)
	for i, v := range s.Samples {
		xys[i] = plotter.XY{X: math.Max(v, leastPlotted), Y: y}
	}
	scatter, err := plotter.NewScatter(xys)
	if err != nil {
		return nil, err
	}
	scatter.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(2), Shape: draw.RingGlyph{}}
	median := math.Max(s.P50, leastPlotted)
	bar, err := plotter.NewLine(plotter.XYs{{X: median, Y: y - 0.1}, {X: median, Y: y + 0.1}})
	if err != nil {
		return nil, err
	}
	bar.Color, bar.Width = c, vg.Points(2.5)
	return []plot.Plotter{scatter, bar}, nil
}

// decades marks the powers of ten.
type decades struct{}

func (decades) Ticks(low, high float64) (ticks []plot.Tick) {
	for e := math.Ceil(math.Log10(low) - 1e-9); math.Pow(10, e) <= high; e++ {
		ticks = append(ticks, plot.Tick{Value: math.Pow(10, e), Label: format(math.Pow(10, e), "s")})
	}
	return ticks
}
