package leasehold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

// openWatch opens a watch in bounded time. What the watch itself does is the program's code like all that a client
// does.
func openWatch(
	ctx context.Context, user *userCode, c clock, timeout time.Duration,
	open func(context.Context) (watch.Interface, error),
) (watch.Interface, error) {
	ctx, cancel := context.WithCancel(ctx) // it goes on as long as the watch
	stop := func(w *openedWatch) {
		user.run("stop of a watch", func() {
			w.Interface.Stop()
			cancel()
			awaitEnd(c, w.events)
			if w, ok := w.Interface.(interface{ Repanic() }); ok { // of leaserest
				w.Repanic()
			}
		})
		cancel() // also if Stop has not returned
	}
	timer := time.AfterFunc(c.wait(timeout), cancel)
	w, err := ask(ctx, user, "watch", timeout, func(ctx context.Context) (*openedWatch, error) {
		w, err := open(ctx)
		switch {
		case err != nil:
			return nil, err
		case w == nil:
			return nil, errNoResult
		}
		events := w.ResultChan()
		if events == nil {
			w.Stop()
			return nil, errors.New("the client returned a watch without a channel")
		}
		return &openedWatch{w, events, stop}, nil
	}, stop)
	if !timer.Stop() {
		if err == nil {
			stop(w)
		}
		err = fmt.Errorf("opening a watch took longer than %v", timeout)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return w, nil
}

// An openedWatch ends its request when it is stopped, and waits for that end (awaitEnd).
type openedWatch struct {
	watch.Interface
	events <-chan watch.Event // as the watch returned it once
	stop   func(*openedWatch)
}

func (w *openedWatch) ResultChan() <-chan watch.Event { return w.events }
func (w *openedWatch) Stop()                          { w.stop(w) }

// awaitEnd waits until the channel of a stopped watch is closed: then nothing of the watch is left. It gives up after
// answerGrace, because some clients never close it.
func awaitEnd(c clock, events <-chan watch.Event) {
	timer := time.NewTimer(c.wait(answerGrace))
	defer timer.Stop()
	for {
		select {
		case _, open := <-events:
			if !open {
				return
			}
		case <-timer.C:
			return
		}
	}
}

// refusedWatchPause returns for how long a watch is not tried again that was refused.
func refusedWatchPause(interval time.Duration) time.Duration {
	return min(100*min(interval, time.Hour), time.Hour)
}
