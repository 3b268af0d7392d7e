package main

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
)

func TestMain(m *testing.M) {
	if os.Getenv(memberEnv) != "" {
		main()
		return
	}
	if err := flag.Set("test.parallel", "6"); err != nil { // each waits; -test.parallel overrides this
		panic(err)
	}
	goleak.VerifyTestMain(controlplane.StopAfter(m))
}

func TestPercentile(t *testing.T) {
	upTo := func(n int) (s []float64) {
		for i := range n {
			s = append(s, float64(i+1))
		}
		return s
	}
	for _, tt := range []struct {
		n       int
		p, want float64
	}{
		{1, 50, 1}, {1, 99, 1}, {1, 0, 1},
		{2, 50, 1}, {3, 50, 2}, {4, 50, 2}, {4, 51, 3},
		{99, 99, 99}, {100, 99, 99}, {101, 99, 100}, {200, 99, 198}, {200, 100, 200},
	} {
		if got := percentile(upTo(tt.n), tt.p); got != tt.want {
			t.Errorf("percentile %v of 1..%d: %v, want %v", tt.p, tt.n, got, tt.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	if s := summarize(); s != nil {
		t.Errorf("of nothing: %v", s)
	}
	s := summarize(3, 1, 2)
	if s.N != 3 || s.P50 != 2 || s.P99 != 3 || s.Max != 3 || !slices.Equal(s.Samples, []float64{3, 1, 2}) {
		t.Errorf("got %+v", *s)
	}
}

func TestFormat(t *testing.T) {
	for _, tt := range []struct {
		v    float64
		unit string
		want string
	}{
		{0, "s", "0 s"}, {0.0000021, "s", "2.10 µs"}, {0.0024, "s", "2.40 ms"}, {0.187, "s", "187 ms"},
		{1.87, "s", "1.87 s"}, {-0.0031, "s", "-3.10 ms"},
		{12, "", "12"}, {0.4821, "", "0.482"}, {31.94, "", "31.9"}, {1234.5, "", "1234"},
		{999, "B", "999 B"}, {1500, "B", "1.50 kB"}, {2.5e6, "B", "2.50 MB"},
		{12e9, "B", "12 GB"},
		{5.04, "%", "5.04 %"},
	} {
		if got := format(tt.v, tt.unit); got != tt.want {
			t.Errorf("format(%v, %q) = %q, want %q", tt.v, tt.unit, got, tt.want)
		}
	}
}

func TestPrint(t *testing.T) {
	r := &report{Standbys: 9}
	r.add(row{What: "both", Unit: "s", ClientGo: summarize(2, 4), Leasehold: summarize(1, 1), Floor: summarize(0.5),
		Goal: "less"}, func() bool { return true })
	r.add(row{What: "missed", ClientGo: summarize(1), Leasehold: summarize(2)}, func() bool { return false })
	r.add(row{What: "never seen", Leasehold: summarize(2)}, func() bool { panic("there is nothing to compare") })
	r.note("a %s", "remark")
	var out bytes.Buffer
	if err := r.print(&out, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{
		{"both", "2", "s", "4", "s", "2", "1", "s", "1", "s", "2", "500", "ms", "2", "2", "less", "yes"},
		{"missed", "1", "1", "2", "1", "0.500", "NO"},
		{"never", "seen", "-", "2", "1"},
		{"a", "remark"},
	} {
		if !slices.ContainsFunc(strings.Split(out.String(), "\n"),
			func(line string) bool { return slices.Equal(strings.Fields(line), want) }) {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
}

func TestPrintMarkdown(t *testing.T) {
	r := &report{Crowds: []crowdReport{{
		Leases: 1000, Duration: "15s", Acquire: 2.5, Goroutines: 6.1, Memory: 134000, Resident: 150000, Sockets: 1000,
		Watches: 2000, Requests: 351,
		Oldest: 3.1, Deadline: 12, CPU: 20.5, RawCPU: 18.2, Server: 75, BusyOldest: 3.42,
	}}}
	r.Groups = []groupReport{{
		Buckets: 1000, Members: 10, Begin: 1.5, Writes: 3.5, Events: 14.1, Client: 1.2, Server: 2.3, Table: 1800,
		Crash: 0.021, CrashWrites: 2, Join: 3.2, JoinMoves: 100, JoinWrites: 4,
	}}
	r.add(row{What: "a", ClientGo: summarize(1), Leasehold: summarize(2, 3)}, nil)
	var out bytes.Buffer
	if err := r.print(&out, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| a | 1 |  | 1 | 2 | 3 | 2 |  | 0.500 |  |  |  |\n",
		"| 1000 | 15s | 2.50 s | 6.10 | 134 kB | 150 kB | 1000 | 2000 | 351 | 3.10 s | 12 s | 3.42 s | 0 | 20.5 % | " +
			"18.2 % | 75 % |\n",
		"| 10 | 1000 | 1.50 s | 3.50 | 14.1 | 1.20 % | 2.30 % | 1.80 kB | 21 ms | 2 | 3.20 s | 100 | 4 |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
	for _, table := range [][][]string{r.comparison(), r.crowds(), r.groups()} {
		for _, row := range table {
			if len(row) != len(table[0]) {
				t.Errorf("%d cells, the head has %d: %q", len(row), len(table[0]), row)
			}
		}
	}
}

// The sums are those of the two measured costs and of nothing else.
func TestSums(t *testing.T) {
	if got := (&report{}).sums(); got != nil {
		t.Errorf("without the costs: %v", got)
	}
	r := &report{WriteCPU: 0.002, EventCPU: 50e-6}
	r.add(row{What: standbyBytes, ClientGo: summarize(1), Leasehold: summarize(500 * 3600 / 2.85)}, nil)
	sums := r.sums()
	if len(sums) != 2 {
		t.Fatalf("%d tables", len(sums))
	}
	for i, want := range [][]string{
		{"15 s", "0.351", "3509", "14.0 Mbit/s", "0.176 cores"},
		{"15 s", "35088", "70.2 x", "73.7 cores", "21.1 GB"},
	} {
		if got := sums[i][1]; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A table grows with members and with runs, and not with the keys of a run.
func TestTableSize(t *testing.T) {
	small := tableSize(10, 1000, 1)
	if more := tableSize(20, 1000, 1); more < small*3/2 {
		t.Errorf("of 20 members %d bytes, of 10 %d", more, small)
	}
	if arbitrary := tableSize(10, 1000, 1000); arbitrary < 2*small {
		t.Errorf("in arbitrary order %d bytes, in runs %d", arbitrary, small)
	}
	if long := tableSize(10, 10_000, 1); long > small+100 {
		t.Errorf("of 10,000 keys %d bytes, of 1,000 %d", long, small)
	}
}

func TestChart(t *testing.T) {
	dir := t.TempDir()
	r := &report{}
	if err := r.chart(filepath.Join(dir, "none.svg")); err == nil {
		t.Error("a chart of nothing")
	}
	r.add(row{What: "count", ClientGo: summarize(1, 2), Leasehold: summarize(1, 2)}, nil)
	r.add(row{What: "handover", Unit: "s", ClientGo: summarize(1, 2), Leasehold: summarize(0.001, -0.002, 1, 2, 3),
		Floor: summarize(0.001)}, nil)
	r.add(row{What: "failover", Unit: "s", ClientGo: summarize(1, 2),
		Leasehold: summarize(0.001, 0.002, 0.003, 0.001, 0.002)}, nil)
	r.add(row{What: "too few", Unit: "s", ClientGo: summarize(1, 2), Leasehold: summarize(0.001, 0.002)}, nil)
	file := filepath.Join(dir, "chart.svg")
	if err := r.chart(file); err != nil {
		t.Fatal(err)
	}
	svg, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"handover", "failover", "leasehold", "client-go", "floor", "10 ms"} {
		if !bytes.Contains(svg, []byte(want)) {
			t.Errorf("the chart has no %q", want)
		}
	}
	for _, other := range []string{"count", "too few"} {
		if bytes.Contains(svg, []byte(other)) {
			t.Errorf("the chart has %q", other)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 120 30 99 99 20 0"
	for _, stat := range []string{"17 (kube-apiserver)" + rest, "17 (a) b (c))" + rest} {
		if got, err := parseStat(stat); err != nil || got != 1500*time.Millisecond {
			t.Errorf("%s: %v, %v, want 1.5s", stat, got, err)
		}
	}
	for _, stat := range []string{"", "17 (short) S 1", "17 (odd) S 1 2 3 4 5 6 7 8 9 10 many 30 99"} {
		if got, err := parseStat(stat); err == nil {
			t.Errorf("%q: %v, want an error", stat, got)
		}
	}
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
}

func TestMeterKinds(t *testing.T) {
	m := newMeter()
	rt := roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK},
			nil
	})
	send := func(method, query string) error {
		_, err := m.roundTrip(rt, &http.Request{Method: method, URL: &url.URL{RawQuery: query}})
		return err
	}
	for _, r := range [][2]string{{"GET", ""}, {"GET", ""}, {"PATCH", "force=true"}, {"POST", ""}, {"PUT", ""}} {
		if err := send(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-m.watching:
		t.Error("watching without a watch")
	default:
	}
	for range 2 {
		if err := send("GET", "watch=true"); err != nil {
			t.Fatal(err)
		}
	}
	<-m.watching
	m.die()
	if err := send("PUT", ""); err != errDead {
		t.Errorf("once dead: %v", err)
	}
	if r, w, o := m.reads.Load(), m.writes.Load(), m.watches.Load(); r != 2 || w != 3 || o != 2 {
		t.Errorf("%d reads, %d writes, %d watches, want 2, 3, 2", r, w, o)
	}
}

func TestShare(t *testing.T) {
	begun := time.Now()
	at := func(seconds ...int) <-chan time.Time {
		c := make(chan time.Time, len(seconds))
		for _, s := range seconds {
			c <- begun.Add(time.Duration(s) * time.Second)
		}
		return c
	}
	for _, tt := range []struct {
		name      string
		led, lost <-chan time.Time
		want      float64
	}{
		{"never led", at(), at(), 0},
		{"leads to the end", at(4), at(), 0.6},
		{"led once", at(1), at(3), 0.2},
		{"led twice, the second time to the end", at(1, 8), at(3), 0.4},
		{"lost after the end", at(5), at(11), 0.5},
		{"led after the end", at(11), at(), 0},
	} {
		if got := share(tt.led, tt.lost, begun, begun.Add(10*time.Second)); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	if got, err := choose(""); err != nil || len(got) != len(experiments)-1 || slices.Contains(got, growing) {
		t.Errorf("all: %v, %v", got, err)
	}
	if got, err := choose("herd,steady"); err != nil || !slices.Equal(got, []string{"herd", "steady"}) {
		t.Errorf("two: %v, %v", got, err)
	}
	if _, err := choose("heard"); err == nil || !strings.Contains(err.Error(), `"heard"`) {
		t.Errorf("a misspelled one: %v", err)
	}
}

func TestParseCrowd(t *testing.T) {
	if c, err := parseCrowd("100000,10m"); err != nil || c.count != 100_000 || c.duration != 10*time.Minute {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, s := range []string{"", "7", "x,10m", "7,x", "0,10m", "7,1ms"} {
		if c, err := parseCrowd(s); err == nil || !strings.Contains(err.Error(), "100000,10m") {
			t.Errorf("%q: %+v, %v", s, c, err)
		}
	}
}

func TestParseGroup(t *testing.T) {
	g, err := parseGroup("100,65536")
	if err != nil || fmt.Sprint(g.members, g.buckets, g.rollouts) != "[100] [65536] []" {
		t.Errorf("got %+v, %v", g, err)
	}
	for _, s := range []string{"", "7", "x,8", "7,x", "1,8", "7,0", "7,65537", "7,8,9"} {
		if g, err := parseGroup(s); err == nil || !strings.Contains(err.Error(), "100,65536") {
			t.Errorf("%q: %+v, %v", s, g, err)
		}
	}
}

// TestQuick runs every experiment once, on real API servers, and looks whether each measured what it compares. How
// fast it was is not what it tests.
func TestQuick(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: needs a real API server")
	}
	groups := [][]string{
		{"handover", "failover", "herd"}, {"race", "blackhole", "takeover", "roundtrip"},
		{"renewal", "steady", "program", "rollout"},
		{"fanout", "many"}, {"groups"}, {growing},
	}
	if got := slices.Sorted(slices.Values(slices.Concat(groups...))); !slices.Equal(got,
		slices.Sorted(slices.Values(names()))) {
		t.Errorf("experiments %q, want %q", got, names())
	}
	for _, group := range groups {
		t.Run(strings.Join(group, " "), func(t *testing.T) {
			t.Parallel() // each waits most of the time
			r, err := run(t.Context(), quick, group, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Rows) < len(group) {
				t.Errorf("%d rows", len(r.Rows))
			}
			for _, row := range r.Rows {
				alone := strings.Contains(row.What, "of one process") || strings.Contains(row.What, "race") ||
					strings.Contains(row.What, "group")
				server := row.Floor != nil && strings.Contains(row.What, "server CPU time")
				switch {
				case strings.Contains(row.What, "lost after"), server: // nobody may have lost anything
				case row.ClientGo == nil && !alone || row.Leasehold == nil:
					t.Errorf("%s: not measured on both sides", row.What)
				}
			}
			if err := r.print(t.Output(), true); err != nil {
				t.Error(err)
			}
		})
	}
}
