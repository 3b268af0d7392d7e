package leasehold

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestContentionWindow(t *testing.T) {
	const ms = contentionWindow(time.Millisecond)
	for _, tt := range []struct {
		name      string
		got, want contentionWindow
	}{
		{"one race lost", contentionWindow(0).lost(I), 5 * ms},
		{"two races lost", contentionWindow(0).lost(I).lost(I), 85 * ms},
		{"three races lost", contentionWindow(0).lost(I).lost(I).lost(I), 300 * ms},
		{"more races lost", (300 * ms).lost(I), 300 * ms},
		{"a short renew interval", (25 * ms).lost(100 * time.Millisecond), 50 * ms},
		{"won", (100 * ms).won(), 50 * ms},
		{"won at last", (ms * 3 / 2).won(), 0},
		{"won without a contentionWindow", contentionWindow(0).won(), 0},
		{"beaten", (16 * ms).preempted(), 15 * ms},
		{"beaten for the last time", ms.preempted(), 0},
		{"beaten without a contentionWindow", contentionWindow(0).preempted(), 0},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, time.Duration(tt.got), time.Duration(tt.want))
		}
	}
}

func TestContentionDelay(t *testing.T) {
	for _, s := range []contentionWindow{0, 1, contentionWindow(time.Millisecond),
		contentionWindow(5 * time.Millisecond), contentionWindow(25 * time.Millisecond), longestWindow} {
		last := time.Duration(0)
		for i := range 1000 {
			d := s.delay(float64(i) / 1000)
			if d < last || d > time.Duration(s) || i == 0 && d != 0 {
				t.Fatalf("contentionWindow %v: delay %v with luck %d/1000, %v before", time.Duration(s), d, i, last)
			}
			last = d
		}
		if last < time.Duration(s)*9/10 {
			t.Errorf("contentionWindow %v: delay %v at most", time.Duration(s), last)
		}
	}
	// 27 in 10,000 draw one of the first 37 ms.
	if got := longestWindow.delay(0.0027); got < 35*time.Millisecond || got > 39*time.Millisecond {
		t.Errorf("wide contentionWindow: delay %v with luck 0.0027, want about 37ms", got)
	}
	if got := contentionWindow(5 * time.Millisecond).delay(0.5); got < 2400*time.Microsecond ||
		got > 2600*time.Microsecond {
		t.Errorf("narrow contentionWindow: median delay %v, want about 2.5ms", got)
	}
}

// A fleetModel is a lease that is released again and again, and its candidates. It takes 1 ms from the
// release until they see it, with some chance, a while until a write has taken the lease, and then again
// 1 ms until the others see that; each write that the server must refuse delays that.
type fleetModel struct {
	*rand.Rand
	write, refuse time.Duration
	spreads       []contentionWindow
	wins          []int
	leader        int
}

func newFleetModel(candidates int) *fleetModel {
	return &fleetModel{Rand: rand.New(rand.NewPCG(1, 2)), write: 2 * time.Millisecond,
		refuse: 400 * time.Microsecond, spreads: make([]contentionWindow, candidates),
		wins: make([]int, candidates)}
}

// release returns how many candidates write until one is seen to lead, and when that is.
func (f *fleetModel) release() (writes int, led time.Duration) {
	type try struct {
		candidate int
		at        time.Duration
	}
	heard := func() time.Duration {
		return 800*time.Microsecond + time.Duration(f.ExpFloat64()*300)*time.Microsecond
	}
	var tries []try
	for i, s := range f.spreads {
		if i != f.leader {
			tries = append(tries, try{i, heard() + s.delay(f.Float64())})
		}
	}
	first := slices.MinFunc(tries, func(a, b try) int { return cmp.Compare(a.at, b.at) })
	led = first.at + f.write
	for _, try := range tries {
		s := &f.spreads[try.candidate]
		switch {
		case try == first:
			writes++
			*s = s.won()
		case try.at < led+heard()+time.Duration(writes)*f.refuse:
			writes++
			*s = s.lost(I)
		default:
			*s = s.preempted()
		}
	}
	f.leader = first.candidate
	f.wins[f.leader]++
	return writes, led
}

// A hundred candidates that know each other do not all write, and yet all of them lead at times.
func TestHerdModel(t *testing.T) {
	f := newFleetModel(100)
	var writes []int
	for i := range 2000 {
		n, led := f.release()
		if led > 50*time.Millisecond {
			t.Errorf("release %d: led after %v", i, led)
		}
		if i >= 4 {
			writes = append(writes, n)
		}
	}
	slices.Sort(writes)
	t.Logf("writes: p50 %d, p99 %d, max %d; wins: %v", writes[len(writes)/2], writes[len(writes)*99/100],
		writes[len(writes)-1], f.wins)
	if p50, p99 := writes[len(writes)/2], writes[len(writes)*99/100]; p50 > 5 || p99 > 20 {
		t.Errorf("writes: p50 %d, p99 %d, want at most 5 and 20", p50, p99)
	}
	if least := slices.Min(f.wins); least == 0 {
		t.Errorf("one of a hundred never led in 2,000 terms: %v", f.wins)
	}
}

// Of a few candidates, none is kept out by others that have lost fewer races.
func TestNobodyStarvesModel(t *testing.T) {
	for _, n := range []int{3, 4, 10} {
		f := newFleetModel(n)
		for i := range f.spreads {
			f.spreads[i] = longestWindow
		}
		f.spreads[0], f.spreads[1] = 0, 0
		for range 1000 * n {
			f.release()
		}
		t.Logf("%d candidates: wins %v", n, f.wins)
		if least := slices.Min(f.wins); least < 100 {
			t.Errorf("%d candidates: one led in %d of %d terms: %v", n, least, 1000*n, f.wins)
		}
	}
}

// A standby that is alone takes a released lease at once if it has not lost a race before, and soon after if it has.
func TestLoneStandbyModel(t *testing.T) {
	f := newFleetModel(2)
	f.spreads[1] = longestWindow
	for range 18 {
		f.release()
	}
	if f.spreads[0] != 0 || f.spreads[1] != 0 {
		t.Errorf("two candidates still wait: %v", f.spreads)
	}
}

// Three hundred candidates on a server that takes a while to refuse a write do not all write again and again.
func TestLargeHerdModel(t *testing.T) {
	f := newFleetModel(300)
	f.write, f.refuse = 20*time.Millisecond, 800*time.Microsecond // a busy server
	all, led := 0, []time.Duration(nil)
	for i := range 500 {
		n, at := f.release()
		if i >= 20 {
			led = append(led, at)
			if n > 100 {
				all++
			}
		}
	}
	slices.Sort(led)
	t.Logf("led after: p50 %v, p90 %v", led[len(led)/2], led[len(led)*9/10])
	if all > 0 {
		t.Errorf("more than 100 candidates wrote in %d of 480 terms", all)
	}
}
