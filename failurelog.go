package leasehold

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// A campaignLog writes the log lines of a campaign. The logger is the user's: no line is waited for.
type campaignLog struct {
	user   *userCode
	logger *slog.Logger
	attrs  []slog.Attr
}

func (l *campaignLog) debug(msg string, args ...any) { l.write(slog.LevelDebug, msg, args) }
func (l *campaignLog) info(msg string, args ...any)  { l.write(slog.LevelInfo, msg, args) }
func (l *campaignLog) warn(msg string, args ...any)  { l.write(slog.LevelWarn, msg, args) }
func (l *campaignLog) error(msg string, args ...any) { l.write(slog.LevelError, msg, args) }

// write writes a line whose caller is two frames up.
func (l *campaignLog) write(level slog.Level, msg string, args []any) {
	var pcs [1]uintptr
	runtime.Callers(3, pcs[:])
	line := slog.NewRecord(time.Now(), level, msg, pcs[0])
	line.AddAttrs(l.attrs...)
	line.Add(args...)
	l.user.post(func() {
		if n := l.user.takeDropped(); n > 0 {
			l.logger.Warn("log lines were dropped, because the logger did not return", "lines", n)
		}
		if h := l.logger.Handler(); h.Enabled(context.Background(), level) {
			h.Handle(context.Background(), line) // a log that fails cannot be logged
		}
	})
}

// A failureLog logs when API requests begin to fail and when they succeed again: two lines for an outage, whatever
// requests it costs. A refusal, of a missing right for example, is logged for each kind of request, because each
// has a remedy of its own.
type failureLog struct {
	log     *campaignLog
	failing *atomic.Int32 // how many campaigns of a shared client have failing requests
	stats   *leaseStats   // nil for a shared watch
	recent  time.Duration // longer than between two tries of a request

	mu      sync.Mutex           // protects following
	failed  map[string]time.Time // when the kinds of requests that fail last did; made when it is used
	level   slog.Level           // at which the outage is logged
	since   time.Time            // when the first of them began to
	refused map[string]time.Time // since when kinds of requests are refused; made when it is used
}

// outageLevel returns at which level one more campaign logs that its requests fail. When those of many do, the
// first few say it for all.
func outageLevel(failing *atomic.Int32) slog.Level {
	if failing.Add(1) > fewLeases {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// close ends the outage without a line: no more requests are made.
func (f *failureLog) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failed) > 0 {
		clear(f.failed)
		f.failing.Add(-1)
	}
}

// record logs how a request of a kind ended, where that is news. A conflict is an answer, not an outage.
func (f *failureLog) record(kind string, err error) {
	switch {
	case err == nil:
	case conflicts(err):
		err = nil
	case errors.Is(err, context.Canceled), errors.Is(err, ErrLost):
		return // we ended it
	case f.stats != nil:
		f.stats.requestFailed(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	since, known := f.refused[kind]
	switch {
	case err != nil && refused(err):
		if !known {
			if f.refused == nil {
				f.refused = map[string]time.Time{}
			}
			f.refused[kind] = time.Now()
			f.log.warn("the API server refuses the request; retrying", "request", kind, "error", err)
		}
		f.succeedLocked(kind) // it answers
	case err != nil:
		f.failLocked(kind, err)
	default:
		if known {
			delete(f.refused, kind)
			f.log.info("the API server accepts the request again", "request", kind, "after", rounded(time.Since(since)))
		}
		f.succeedLocked(kind)
	}
}

// failLocked records that a request of a kind failed. The caller holds mu.
func (f *failureLog) failLocked(kind string, err error) {
	if len(f.failed) == 0 {
		f.since, f.level = time.Now(), outageLevel(f.failing)
		f.log.write(f.level, "API requests are failing; retrying", []any{"request", kind, "error", err})
	} else {
		f.log.debug("API request failed", "request", kind, "error", err)
	}
	if f.failed == nil {
		f.failed = map[string]time.Time{}
	}
	f.failed[kind] = time.Now()
}

// succeedLocked records that a request of a kind was answered. The outage is over unless those of another kind
// still fail. The caller holds mu.
func (f *failureLog) succeedLocked(kind string) {
	if len(f.failed) == 0 {
		return
	}
	delete(f.failed, kind)
	for _, last := range f.failed {
		if time.Since(last) < f.recent {
			return
		}
	}
	clear(f.failed) // a kind that is not tried any more does not fail any more
	f.failing.Add(-1)
	f.log.write(min(f.level, slog.LevelInfo), "API requests succeed again",
		[]any{"after", rounded(time.Since(f.since))})
}

// rounded returns d to the precision that people read in logs.
func rounded(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second / 10)
}
