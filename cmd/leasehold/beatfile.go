package main

import (
	"errors"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"

	"github.com/leasehold-go/leasehold"
)

// A beatFile is the file that a command changes to show that its work goes on.
type beatFile struct {
	path    string
	within  time.Duration // how often it is to change at least
	changed func(flag string) bool
	stat    func(path string) (fs.FileInfo, error)

	session atomic.Pointer[leasehold.Session] // whose command runs; nil before the first
}

func (b *beatFile) flags(flags *pflag.FlagSet) {
	b.changed, b.stat = flags.Changed, os.Stat
	flags.StringVar(&b.path, "beat-file", "",
		"a `file` that the command changes while its work goes on; if it does not, the lease is lost (default none)")
	flags.DurationVar(&b.within, "beat", 0, "how often the command changes --beat-file at least")
}

// used reports whether the command has to show that its work goes on.
func (b *beatFile) used() bool { return b.path != "" }

func (b *beatFile) check() error {
	switch {
	case b.used() != b.changed("beat"):
		return usagef("--beat-file and --beat are required together")
	case b.used() && b.within < time.Second: // there are file systems that count in seconds
		return usagef("--beat %v: want at least 1s", b.within)
	}
	return nil
}

// follow calls Beat of the session whenever the file is not as it was before, until stop is closed. It compares what it
// sees with what it saw before, and no time of the file with a clock. A look may not return, where the file is on a
// server that is away. Only this goroutine waits for it: the lease is renewed until WithBeat ends that.
func (b *beatFile) follow(stop <-chan struct{}) {
	looks := time.NewTicker(min(b.within/10, time.Second))
	defer looks.Stop()
	before, _ := b.stat(b.path)
	for {
		select {
		case <-looks.C:
		case <-stop:
			return
		}
		now, err := b.stat(b.path)
		if err != nil {
			continue // it may be created later
		}
		if s := b.session.Load(); s != nil && differ(before, now) {
			s.Beat()
		}
		before = now
	}
}

// differ reports whether the file was changed. before is nil if there was none.
func differ(before, now fs.FileInfo) bool {
	return before == nil || !before.ModTime().Equal(now.ModTime()) || before.Size() != now.Size()
}

// workStuck reports whether the lease was lost because the work did not call Beat.
func workStuck(err error) bool {
	var loss interface{ Reason() string }
	return errors.As(err, &loss) && loss.Reason() == "stalled"
}
