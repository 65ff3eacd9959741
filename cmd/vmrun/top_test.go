package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/google/go-cmp/cmp"
)

func topNames(t *topTable) string {
	var names []string
	for _, r := range t.rows {
		names = append(names, r.Name)
	}
	return strings.Join(names, " ")
}

func TestTopTable(t *testing.T) {
	start := time.Unix(1700000000, 0)
	var table topTable
	table.update([]topSample{
		{Name: "web", CPU: 10 * time.Second, Memory: 3},
		{Name: "db", CPU: time.Second, Memory: 7, Disk: traffic{100, 0}, Network: traffic{0, 50}},
	}, start)
	for _, r := range table.rows {
		if r.load != 0 || r.disk.sum() != 0 {
			t.Errorf("a first sample has rates: %+v", r)
		}
	}
	table.update([]topSample{
		{Name: "web", CPU: 11 * time.Second, Memory: 3},
		{Name: "db", CPU: 4 * time.Second, Memory: 7, Disk: traffic{2148, 1024}, Network: traffic{10, 50}},
		{Name: "new", CPU: time.Hour, Memory: 5},
	}, start.Add(2*time.Second))
	if got := topNames(&table); got != "db new web" {
		t.Errorf("by name: %s", got)
	}
	db := table.rows[0]
	if db.load != 1.5 || db.disk != (traffic{1024, 512}) || db.network != (traffic{5, 0}) {
		t.Errorf("rates %v %v %v", db.load, db.disk, db.network)
	}
	if diff := cmp.Diff([]float64{0, 1.5}, db.history); diff != "" {
		t.Error(diff)
	}
	for _, tt := range []struct {
		column topColumn
		want   string
	}{{byCPU, "db web new"}, {byCPU, "new web db"}, {byMemory, "db new web"}, {byName, "db new web"}, {byName, "web new db"}, {byNetwork, "db new web"}} {
		table.sortBy(tt.column)
		if got := topNames(&table); got != tt.want {
			t.Errorf("by %v: %s, want %s", tt.column, got, tt.want)
		}
	}
	// Another VM of the name has used less.
	table.update([]topSample{{Name: "db", CPU: 0}}, start.Add(4*time.Second))
	if r := table.rows[0]; r.load != 0 || len(table.rows) != 1 {
		t.Errorf("%+v", table.rows)
	}
}

func TestTopSelection(t *testing.T) {
	var table topTable
	table.move(1)
	if table.cursor() != -1 {
		t.Error("a row is selected of none")
	}
	table.update([]topSample{{Name: "a"}, {Name: "b"}, {Name: "c"}}, time.Unix(1, 0))
	table.move(1)
	table.move(1)
	table.move(1)
	if table.selected != "c" {
		t.Errorf("selected %s", table.selected)
	}
	table.sortBy(byName) // reversed: the selection goes along
	if table.cursor() != 0 {
		t.Errorf("the cursor is at %d", table.cursor())
	}
	table.update([]topSample{{Name: "a"}, {Name: "b"}}, time.Unix(2, 0))
	if table.cursor() != 0 {
		t.Errorf("its row is gone, and the cursor at %d", table.cursor())
	}
}

func TestGraph(t *testing.T) {
	if got := graph([]float64{0, 0.5, 1, 2, 4, 9, -1}, 4); got != " ▁▂▄██ " {
		t.Errorf("%q", got)
	}
	if got := graph([]float64{1}, 0); got != " " {
		t.Errorf("%q", got)
	}
}

func TestShortBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 K", 10 << 10: "10 K", 1536 << 10: "1.5 M", 1 << 62: "4.0 E"} {
		if got := shortBytes(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

// shown is what is on a simulated screen.
func shown(s tcell.SimulationScreen) string {
	cells, width, _ := s.GetContents()
	var b strings.Builder
	for i, c := range cells {
		b.WriteString(string(c.Runes))
		if i%width == width-1 {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// TestTopRun plays a session: a table appears, keys sort and select, enter opens
// the console of the selected VM, a failure is told, q ends.
func TestTopRun(t *testing.T) {
	s := tcell.NewSimulationScreen("UTF-8")
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	defer s.Fini()
	s.SetSize(100, 6)
	opened := make(chan string, 1)
	samples := make(chan struct{}, 10)
	app := &top{screen: topScreen{screen: s, color: true}, interval: time.Hour,
		sample: func(context.Context) ([]topSample, error) {
			samples <- struct{}{}
			return []topSample{{Name: "web", State: "running", Memory: 28 << 20}, {Name: "db", State: "paused"}}, errors.New("lab does not answer")
		},
		console: func(name string) error {
			opened <- shown(s)
			opened <- name
			return nil
		}}
	ended := make(chan error, 1)
	go func() { ended <- app.run(t.Context()) }()
	<-samples
	s.InjectKey(tcell.KeyRune, 'm', 0)
	s.InjectKey(tcell.KeyDown, 0, 0)
	s.InjectKey(tcell.KeyUp, 0, 0)
	s.InjectKey(tcell.KeyEnter, 0, 0)
	screen := <-opened
	if name := <-opened; name != "web" {
		t.Errorf("the console of %s was opened", name)
	}
	lines := strings.Split(screen, "\n")
	if !strings.HasPrefix(lines[0], "vmrun top  VMs: 2") || !strings.HasPrefix(lines[1], "NAME") ||
		!strings.Contains(lines[2], "web") || !strings.Contains(lines[2], "28 M") || !strings.Contains(lines[3], "paused") ||
		!strings.HasPrefix(lines[5], "lab does not answer") {
		t.Errorf("the screen shows\n%s", screen)
	}
	s.InjectKey(tcell.KeyRune, 'q', 0)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
