package main

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/leasetest"
)

// A lookup is what a look at a file finds.
type lookup struct {
	fs.FileInfo
	modified time.Time
	size     int64
}

func (s lookup) ModTime() time.Time { return s.modified }
func (s lookup) Size() int64        { return s.size }

// A file that changes keeps the session, whatever its times are; one that does not, or is not there, or cannot be
// looked at, loses it. A look that does not return keeps nothing else waiting.
func TestBeatFile(t *testing.T) {
	const within = 10 * time.Second
	began := time.Now()
	still := func(int) (fs.FileInfo, error) { return lookup{modified: began}, nil }
	for _, tt := range []struct {
		name string
		stat func(look int) (fs.FileInfo, error)
		lost bool
	}{
		{"touched", func(i int) (fs.FileInfo, error) {
			return lookup{modified: began.Add(time.Duration(i) * time.Second)}, nil
		}, false},
		{"touched, while the clock is set back", func(i int) (fs.FileInfo, error) {
			return lookup{modified: began.Add(-time.Duration(i) * time.Hour)}, nil
		}, false},
		{"touched seldom, but in time", func(i int) (fs.FileInfo, error) {
			return lookup{modified: began.Add(time.Duration(i/7) * time.Second)}, nil
		}, false},
		{"written at one and the same time", func(i int) (fs.FileInfo, error) {
			return lookup{modified: began, size: int64(i)}, nil
		}, false},
		{"as an earlier command left it", still, true},
		{"of the future, but not touched", func(int) (fs.FileInfo, error) {
			return lookup{modified: began.Add(1000 * time.Hour)}, nil
		}, true},
		{"missing", func(int) (fs.FileInfo, error) { return nil, fs.ErrNotExist }, true},
		{"created, and left alone", func(i int) (fs.FileInfo, error) {
			if i < 5 {
				return nil, fs.ErrNotExist
			}
			return still(i)
		}, true},
		{"not readable now and then", func(i int) (fs.FileInfo, error) {
			if i%2 == 0 {
				return nil, fs.ErrPermission
			}
			return lookup{modified: began.Add(time.Duration(i) * time.Second)}, nil
		}, false},
		{"on a server that is away", func(int) (fs.FileInfo, error) {
			time.Sleep(time.Hour)
			return nil, os.ErrDeadlineExceeded
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				looks := 0
				b := &beatFile{path: "beat", within: within, stat: func(string) (fs.FileInfo, error) {
					looks++
					return tt.stat(looks)
				}}
				stop, stopped := make(chan struct{}), make(chan struct{})
				defer func() {
					close(stop)
					<-stopped
				}()
				go func() {
					defer close(stopped)
					b.follow(stop)
				}()
				var monitor leasehold.Monitor
				s, err := leasehold.Acquire(t.Context(), leasehold.WithLease("job"), leasehold.WithNamespace("default"),
					leasehold.WithClient(leasetest.NewServer().Client("a")), leasehold.WithBeat(within),
					leasehold.WithMonitor(&monitor), leasehold.WithLogger(slog.New(slog.DiscardHandler)))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Release()
				b.session.Store(&s)
				time.Sleep(10 * within)
				if err := s.Err(); (err != nil) != tt.lost || tt.lost && !workStuck(err) {
					t.Errorf("the session ended with %v", err)
				}
				status := monitor.Leases()[0]
				if n := status.Losses["stalled"]; (n > 0) != tt.lost {
					t.Errorf("%d losses counted", n)
				}
				if status.Renewals < 3 {
					t.Errorf("%d renewals in %v at least", status.Renewals, within)
				}
			})
		})
	}
}

// Of a real file, what a command does to it is a change.
func TestDiffer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "beat")
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "1")
	for _, tt := range []struct {
		name string
		do   func()
		want bool
	}{
		{"nothing", func() {}, false},
		{"read", func() { os.ReadFile(path) }, false},
		{"touched", func() { os.Chtimes(path, at, at.Add(time.Millisecond)) }, true},
		{"set back", func() { os.Chtimes(path, at, at) }, true},
		{"written within one tick of the clock", func() { write(path, "12") }, true},
		{"replaced", func() {
			write(path+".new", "3")
			os.Rename(path+".new", path)
		}, true},
	} {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		tt.do()
		now, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := differ(before, now); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
