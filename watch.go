package leasehold

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

// openWatch opens a watch in bounded time. To stop it is the program's code like all that a client does.
func openWatch(
	ctx context.Context, user *userCode, c clock, timeout time.Duration,
	open func(context.Context) (watch.Interface, error),
) (watch.Interface, error) {
	ctx, cancel := context.WithCancel(ctx) // it goes on as long as the watch
	stop := func(w watch.Interface) {
		user.run("stop of a watch", func() {
			w.Stop()
			cancel()
			awaitEnd(c, w)
			if w, ok := w.(interface{ Repanic() }); ok { // of leaserest
				w.Repanic()
			}
		})
		cancel() // also if Stop has not returned
	}
	timer := time.AfterFunc(c.wait(timeout), cancel)
	w, err := ask(ctx, user, "watch", timeout, func(ctx context.Context) (watch.Interface, error) {
		w, err := open(ctx)
		if w == nil && err == nil {
			err = errors.New("the client returned neither a watch nor an error")
		}
		return w, err
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
	return cancelledWatch{w, stop}, nil
}

// A cancelledWatch ends its request when it is stopped, and waits for that end (awaitEnd).
type cancelledWatch struct {
	watch.Interface
	stop func(watch.Interface)
}

func (w cancelledWatch) Stop() { w.stop(w.Interface) }

// awaitEnd waits until the channel of a stopped watch is closed: then nothing of the watch is left. It gives up after
// answerGrace, because some clients never close it.
func awaitEnd(c clock, w watch.Interface) {
	timer := time.NewTimer(c.wait(answerGrace))
	defer timer.Stop()
	for {
		select {
		case _, open := <-w.ResultChan():
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
