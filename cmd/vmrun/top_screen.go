package main

import (
	"fmt"

	"github.com/gdamore/tcell/v2"
)

// topColumns are what a row shows, from the left.
var topColumns = []struct {
	title string
	width int
	left  bool // aligned to the left
	sort  topColumn
	text  func(topRow) string
}{
	{"NAME", 20, true, byName, func(r topRow) string { return r.Name }},
	{"STATE", 9, true, byName, func(r topRow) string { return r.State }},
	{"CPU%", 6, false, byCPU, func(r topRow) string { return fmt.Sprintf("%.0f", 100*r.load) }},
	{"MEMORY", 9, false, byMemory, func(r topRow) string { return shortBytes(r.Memory) }},
	{"DISK R", 8, false, byDisk, func(r topRow) string { return shortBytes(r.disk.In) }},
	{"W/s", 8, false, byDisk, func(r topRow) string { return shortBytes(r.disk.Out) }},
	{"NET IN", 8, false, byNetwork, func(r topRow) string { return shortBytes(r.network.In) }},
	{"OUT/s", 8, false, byNetwork, func(r topRow) string { return shortBytes(r.network.Out) }},
}

const (
	topHelp    = "q quit  ↑↓ select  enter console  sort by: n name  c CPU  m memory  d disk  t network"
	topHead    = 2 // lines above the rows
	topFoot    = 1 // lines below
	minGraph   = 5 // characters; where less is left there is no graph
	topMissing = "no virtual machine runs"
)

// shortBytes is an amount in at most 6 characters: people compare magnitudes here.
func shortBytes(n int64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	value := float64(n)
	unit := -1
	for value >= step && unit < len("KMGTPE")-1 {
		value /= step
		unit++
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %c", value, "KMGTPE"[unit])
	}
	return fmt.Sprintf("%.0f %c", value, "KMGTPE"[unit])
}

// topScreen draws a table on a terminal.
type topScreen struct {
	screen tcell.Screen
	color  bool
}

// style is what something is drawn in; without colour only what is bold or
// reversed stands out.
func (s topScreen) style(c tcell.Color) tcell.Style {
	if !s.color {
		return tcell.StyleDefault
	}
	return tcell.StyleDefault.Foreground(c)
}

// draw draws everything. A trouble is told in place of the help.
func (s topScreen) draw(t *topTable, trouble error) {
	s.screen.Clear()
	width, height := s.screen.Size()
	s.print(0, 0, width, tcell.StyleDefault.Bold(true), fmt.Sprintf("vmrun top  VMs: %d  %s", len(t.rows), t.taken.Format("15:04:05")))
	s.drawTitles(t)
	if len(t.rows) == 0 {
		s.print(0, topHead, width, s.style(tcell.ColorYellow), topMissing)
	}
	room := max(0, height-topHead-topFoot)
	first := max(0, t.cursor()-room+1)
	for i := first; i < len(t.rows) && i < first+room; i++ {
		s.drawRow(topHead+i-first, t.rows[i], i == t.cursor())
	}
	if trouble != nil {
		s.print(0, height-1, width, s.style(tcell.ColorRed), trouble.Error())
	} else {
		s.print(0, height-1, width, s.style(tcell.ColorGray), topHelp)
	}
	s.screen.Show()
}

func (s topScreen) drawTitles(t *topTable) {
	x := 0
	for _, c := range topColumns {
		style := s.style(tcell.ColorTeal).Bold(true)
		if c.sort == t.column && (c.sort != byName || c.title == "NAME") {
			style = style.Underline(true)
		}
		s.cell(x, topHead-1, c.width, c.left, style, c.title)
		x += c.width + 1
	}
	if width, _ := s.screen.Size(); width-x >= minGraph {
		s.print(x, topHead-1, width-x, s.style(tcell.ColorTeal).Bold(true), "CPU")
	}
}

func (s topScreen) drawRow(y int, r topRow, selected bool) {
	width, _ := s.screen.Size()
	style := tcell.StyleDefault
	if r.State != "running" {
		style = s.style(tcell.ColorYellow)
	}
	if selected {
		style = style.Reverse(true)
		s.print(0, y, width, style, fmt.Sprintf("%*s", width, ""))
	}
	x := 0
	for _, c := range topColumns {
		s.cell(x, y, c.width, c.left, style, c.text(r))
		x += c.width + 1
	}
	if room := width - x; room >= minGraph {
		history := r.history[max(0, len(r.history)-room):]
		graphStyle := style
		if !selected {
			graphStyle = s.style(tcell.ColorGreen)
		}
		s.print(x, y, room, graphStyle, graph(history, float64(max(1, r.CPUs))))
	}
}

// cell prints a text in a column, cut where it is too long.
func (s topScreen) cell(x, y, width int, left bool, style tcell.Style, text string) {
	if n := len([]rune(text)); !left && n < width {
		x, width = x+width-n, n
	}
	s.print(x, y, width, style, text)
}

func (s topScreen) print(x, y, width int, style tcell.Style, text string) {
	runes := []rune(text)
	if len(runes) > width && width > 0 {
		runes = append(runes[:width-1:width-1], '…')
	}
	for i, r := range runes {
		s.screen.SetContent(x+i, y, r, nil, style)
	}
}
