package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A stalled writer blocks until it is opened, as a full pipe does.
type stalled struct {
	open chan struct{}
	mu   sync.Mutex
	got  bytes.Buffer
}

func (s *stalled) Write(p []byte) (int, error) {
	<-s.open
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func (s *stalled) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.String()
}

// A writer that blocks delays nobody: lines beyond the buffer are dropped and counted.
func TestLogWriterBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &stalled{open: make(chan struct{})}
		w := newLogWriter(to)
		w.lost = func(lines int) []byte { return fmt.Appendf(nil, "dropped %d\n", lines) }
		line := []byte(strings.Repeat("x", 1023) + "\n")
		w.Write(line)
		synctest.Wait() // it is being written
		const fits = logBuffer / 1024
		for range fits + 7 {
			if n, err := w.Write(line); n != len(line) || err != nil {
				t.Fatalf("wrote %d: %v", n, err)
			}
		}
		began := time.Now()
		w.flush()
		if waited := time.Since(began); waited != flushTimeout {
			t.Errorf("flush waited %v for a writer that blocks, want %v", waited, flushTimeout)
		}
		close(to.open)
		w.flush()
		got := to.String()
		if lines := strings.Count(got, "x\n"); lines != 1+fits {
			t.Errorf("%d lines written, want %d", lines, 1+fits)
		}
		if !strings.HasSuffix(got, "\ndropped 7\n") {
			t.Errorf("the last lines are %q", got[len(got)-40:])
		}
		w.Write([]byte("again\n"))
		w.flush()
		if !strings.HasSuffix(to.String(), "\ndropped 7\nagain\n") {
			t.Error("later lines are missing")
		}
	})
}

// After flush the lines are written, in their order.
func TestLogWriterFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var to bytes.Buffer
		w := newLogWriter(&to)
		want := ""
		for i := range 100 {
			fmt.Fprintln(w, i)
			want += fmt.Sprintln(i)
		}
		w.flush()
		if to.String() != want {
			t.Errorf("written:\n%s", to.String())
		}
	})
}
