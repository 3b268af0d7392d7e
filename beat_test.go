package leasehold

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/leasehold-go/leasehold/leasetest"
)

// Work that calls Beat in time keeps its lease; work that is stuck loses it, and somebody else has it after D.
func TestBeat(t *testing.T) {
	const limit = 20 * time.Second
	for _, tt := range []struct {
		name  string
		every time.Duration // between two calls; 0 for none
		lost  bool
	}{
		{"in a hot loop", 10 * time.Millisecond, false},
		{"just in time", limit - limit/4 - eps, false},
		{"too rarely", limit + limit/2, true},
		{"never", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var m Monitor
				s := w.acquire(w.Context(), "a", WithBeat(limit), WithMonitor(&m))
				began := time.Now()
				for s.Err() == nil && time.Since(began) < 5*limit {
					if tt.every == 0 {
						<-s.Done()
						break
					}
					time.Sleep(tt.every)
					s.Beat()
				}
				took := time.Since(began)
				const want = "lease lost: the work did not call Beat for 20s"
				switch {
				case !tt.lost && s.Err() != nil:
					t.Errorf("%v after %v", s.Err(), took)
				case tt.lost && (errorText(s.Err()) != want || !errors.Is(s.Err(), ErrLost) || took < limit ||
					took > limit*3/2):
					t.Errorf("%v after %v, want %s", s.Err(), took, want)
				case tt.lost && (w.holder() != "a" || s.ValidFor() != 0):
					t.Errorf("held by %q, valid for %v", w.holder(), s.ValidFor())
				}
				if n := w.status(&m).Losses["stalled"]; (n > 0) != tt.lost {
					t.Errorf("%d losses counted", n)
				}
				s.Release()
			})
		})
	}
}

// The lease of work that is stuck is not renewed any more, and another acquires it when it expires.
func TestBeatHandsOver(t *testing.T) {
	inWorld(t, func(w *world) {
		returns := make(chan struct{})
		a := w.run("a", func(Session) { <-returns }, WithBeat(time.Minute), WithOverrun(func(Session) {}))
		b := w.run("b", nil)
		w.sleep(time.Minute + time.Minute/4 + D + time.Second)
		w.wantLeader("b")
		close(returns)
		a.quit()
		b.quit()
	})
}

// The first d begins with the session, not with the claim: one that had to be renewed first has all of it.
func TestBeatBegins(t *testing.T) {
	const limit = 20 * time.Second
	inWorld(t, func(w *world) {
		var slept atomic.Int64
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				slept.Add(int64(R/2 + time.Second)) // while the request is under way
				return leasetest.Fault{}
			}
			return leasetest.Fault{After: 2 * time.Second}
		})
		s := w.acquire(w.Context(), "a", WithBeat(limit), withClock(sleepyClock{&slept}))
		began := time.Now()
		<-s.Done()
		if took := time.Since(began); took < limit {
			t.Errorf("%v after %v", s.Err(), took)
		}
		s.Release()
	})
}

// A limit that four checks do not divide is kept all the same: a call is found by the first check after it, and missed
// the limit after that.
func TestBeatLimit(t *testing.T) {
	const limit = 20*time.Second + 3
	s := &session{}
	s.delivered.Store(true)
	s.beaten.Store(true)
	began := time.Now()
	b := beatCheck{limit: limit, heard: began}
	now, stuck, wait := began, false, time.Duration(0)
	for looks := 0; !stuck && looks < 10; looks++ {
		wait, stuck = b.check(s, now)
		if wait <= 0 {
			t.Fatalf("wait %v", wait)
		}
		if !stuck {
			now = now.Add(wait)
		}
	}
	if silent := now.Sub(began); !stuck || silent != limit {
		t.Errorf("stuck: %v, after %v, want after %v", stuck, silent, limit)
	}
}

func TestBeatOfNothing(t *testing.T) {
	var s Session
	s.Beat()
	inWorld(t, func(w *world) {
		s := w.acquire(w.Context(), "a")
		s.Beat()
		s.Release()
		s.Beat()
	})
}

// BenchmarkBeat measures what Beat costs in a loop.
func BenchmarkBeat(b *testing.B) {
	b.ReportAllocs()
	s, err := Acquire(b.Context(), WithLease(name), WithNamespace(ns), WithClient(leasetest.NewServer().Client("a")),
		WithBeat(time.Hour), unlogged)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Release()
	for b.Loop() {
		s.Beat()
	}
}
