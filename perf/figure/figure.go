// SPDX-License-Identifier: Apache-2.0

// Package figure gives all plots of measurements one look.
package figure

import (
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Width and Height of a plot; two fit beside each other on a page.
const (
	Width  = 8 * vg.Inch
	Height = 4.5 * vg.Inch
)

// Color is the i-th of a palette: Okabe and Ito's, which colour-blind readers can
// tell apart, and darker ones after it.
func Color(i int) color.Color {
	colors := []color.RGBA{
		{0x00, 0x72, 0xB2, 0xFF}, {0xE6, 0x9F, 0x00, 0xFF}, {0x00, 0x9E, 0x73, 0xFF}, {0xCC, 0x79, 0xA7, 0xFF},
		{0x56, 0xB4, 0xE9, 0xFF}, {0xD5, 0x5E, 0x00, 0xFF}, {0xF0, 0xE4, 0x42, 0xFF}, {0x55, 0x55, 0x55, 0xFF},
		{0xAA, 0xAA, 0xAA, 0xFF}, {0x00, 0x44, 0x66, 0xFF}, {0x88, 0x22, 0x55, 0xFF}, {0x66, 0xAA, 0x33, 0xFF},
	}
	return colors[i%len(colors)]
}

// Dashes make a line that belongs to another of the same colour.
func Dashes() []vg.Length { return []vg.Length{vg.Points(4), vg.Points(3)} }

// New is an empty plot with a grid. Its letters are small, because who shows it may
// have a wider font than the one that it was laid out with.
func New(title, x, y string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.TextStyle.Font.Size = vg.Points(10)
	p.Title.Padding = vg.Points(6)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Label.TextStyle.Font.Size = vg.Points(9)
		axis.Tick.Label.Font.Size = vg.Points(8)
	}
	p.Legend.TextStyle.Font.Size = vg.Points(8)
	p.Legend.Padding = vg.Points(2)
	p.Add(plotter.NewGrid())
	return p
}

// NewLogLog is New with logarithmic axes and the legend where rising lines leave room.
func NewLogLog(title, x, y string) *plot.Plot {
	p := New(title, x, y)
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Left, p.Legend.Top = true, true
	return p
}
