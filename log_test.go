package leasehold

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// A journal is a log at the level that operators have. Its lines have neither time nor lease nor
// identity, and durations to the second.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) logger() Option {
	return WithLogger(slog.New(slog.NewTextHandler(j,
		&slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			switch {
			case a.Key == slog.TimeKey:
				return slog.Attr{}
			case a.Value.Kind() == slog.KindDuration:
				return slog.Duration(a.Key, a.Value.Duration().Round(time.Second))
			}
			return a
		}})))
}

var aboutUs = regexp.MustCompile(` lease=default/reconciler identity=a\b`)

// said returns what was logged since it was last asked.
func (j *journal) said() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.text.Reset()
	lines := aboutUs.ReplaceAllString(j.text.String(), "")
	if strings.Count(lines, "\n") != len(aboutUs.FindAllString(j.text.String(), -1)) {
		return "a line without lease and identity in:\n" + j.text.String()
	}
	return lines
}

// What operators read, line by line.
func TestLog(t *testing.T) {
	inWorld(t, func(w *world) {
		var j journal
		client := w.srv.Client("a")
		said := func(d time.Duration, want ...string) {
			t.Helper()
			w.sleep(d)
			lines := ""
			for _, line := range want {
				lines += line + "\n"
			}
			if got := j.said(); got != lines {
				w.Errorf("%v: logged\n%swant\n%s", time.Now(), got, lines)
			}
		}
		a := w.run("a", nil, j.logger())
		said(0, `level=INFO msg="lease acquired" fencingToken=1001 transitions=0`)
		said(long(24 * time.Hour)) // undisturbed

		// An outage that is not long enough to lose the lease: of the server, of the network.
		for _, outage := range []struct {
			fault leasetest.Fault
			said  string
		}{
			{leasetest.Fault{Err: leasetest.ConnectionRefused()},
				"dial tcp 127.0.0.1:6443: connect: connection refused"},
			{leasetest.Fault{Err: leasetest.ServiceUnavailable()}, "apiserver is shutting down"},
			{leasetest.Fault{Drop: leasetest.TheRequest}, "context deadline exceeded"},
		} {
			client.OnRequest(func(leasetest.Request) leasetest.Fault { return outage.fault })
			client.CloseWatches(nil)
			w.sleep(6 * time.Second)
			if got := j.said(); strings.Count(got, "\n") != 1 ||
				!strings.HasPrefix(got, `level=WARN msg="API requests are failing; retrying" request=`) ||
				!strings.HasSuffix(got, outage.said+"\"\n") {
				w.Errorf("in an outage: logged\n%s", got)
			}
			client.OnRequest(nil)
			w.sleep(I)
			over := regexp.MustCompile(`^level=INFO msg="API requests succeed again" after=[1-9]s\n$`)
			if got := j.said(); !over.MatchString(got) {
				w.Errorf("after an outage: logged\n%s", got)
			}
			said(time.Minute)
		}

		// Losses.
		w.steal("thief")
		token := fmt.Sprintf("fencingToken=%d", w.session(0).FencingToken())
		said(D-time.Second, `level=WARN msg="lease lost" cause="lease lost: now held by \"thief\"" `+token)
		w.sleep(time.Minute)
		w.wantLeader("a")
		j.said()

		// Somebody else in our name, once for each of its terms.
		for range 2 {
			now := metav1.NowMicro()
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.AcquireTime, l.Spec.RenewTime = &now, &now })
			namesake := `level=WARN msg="lease held under our own identity by another process ` +
				`or an earlier run of this one; waiting until it expires" acquireTime=` +
				now.UTC().Format("2006-01-02T15:04:05.000Z07:00")
			w.sleep(eps)
			if got := j.said(); !strings.HasSuffix(got, namesake+"\n") ||
				strings.Count(got, "under our own identity") != 1 {
				w.Errorf("held by a namesake: logged\n%swant\n%s", got, namesake)
			}
			for range 10 {
				w.sleep(time.Second)
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
					l.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
				})
			}
			said(0) // it renews
		}
		w.sleep(time.Minute)
		w.wantLeader("a")
		j.said()

		a.quit()
		said(0, fmt.Sprintf(`level=INFO msg="lease released" fencingToken=%d`, w.session(-1).FencingToken()))
		said(time.Hour)

		// A right that is missing, and then given.
		client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "apply" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		a = w.run("a", nil, j.logger())
		said(time.Hour-time.Millisecond,
			`level=WARN msg="the API server refuses the request; retrying" request=acquire error="patch lease `+
				`default/reconciler: `+
				`leases.coordination.k8s.io \"reconciler\" is forbidden: User `+
				`\"system:serviceaccount:default:leasetest\" cannot patch resource \"leases\" in API group `+
				`\"coordination.k8s.io\" in the namespace \"default\"; `+
				`a Role in namespace \"default\" needs the rule {apiGroups: [\"coordination.k8s.io\"], resources: `+
				`[\"leases\"], resourceNames: [\"reconciler\"], verbs: [\"patch\"]}"`)
		client.OnRequest(nil)
		w.sleep(time.Second)
		if got, want := j.said(), fmt.Sprintf(
			`level=INFO msg="the API server accepts the request again" request=acquire after=1h0m0s`+"\n"+
				`level=INFO msg="lease acquired" fencingToken=%d transitions=%d`+"\n",
			w.session(-1).FencingToken(), *w.lease().Spec.LeaseTransitions); got != want {
			w.Errorf("logged\n%swant\n%s", got, want)
		}
		a.quit()
	})
}

// An outage in which different requests fail at different times, and some are never tried again, is one.
func TestFailureLog(t *testing.T) {
	inWorld(t, func(w *world) {
		var j journal
		var o options
		j.logger()(&o)
		lines := func(want int) {
			t.Helper()
			synctest.Wait()
			j.mu.Lock()
			defer j.mu.Unlock()
			if got := strings.Count(j.text.String(), "\n"); got != want {
				w.Errorf("%d lines logged, want %d:\n%s", got, want, j.text.String())
			}
			j.text.Reset()
		}
		log := &campaignLog{user: &userCode{clock: virtualClock{}}, logger: o.log}
		failures := &failureLog{log: log, failing: &atomic.Int32{}, stats: &leaseStats{}, recent: D}
		broken, gone := leasetest.ServiceUnavailable(), leasetest.ConnectionRefused()
		failures.record("renew", broken)
		lines(1)
		failures.record("get", nil) // reading works, writing does not
		failures.record("renew", broken)
		failures.record("get", gone)
		failures.record("watch", gone)
		failures.record("renew", nil)
		failures.record("get", nil)
		lines(0)
		failures.record("watch", nil)
		lines(1)

		failures.record("acquire", gone) // another one was faster then
		lines(1)
		time.Sleep(D)
		failures.record("get", nil)
		lines(1)

		failures.record("renew", &loss{reason: taken}) // it was not sent
		lines(0)
		if n := failures.stats.failures; n != 5 {
			w.Errorf("%d failures counted, want 5", n)
		}
		if err := failures.stats.lastError; !errors.Is(err, gone) {
			w.Errorf("the last error is %v", err)
		}
	})
}

// What a session's end cuts off, or waits for, is no failure of the API server: neither the log nor the
// count of failures says so.
func TestLogOfWhatIsCutOff(t *testing.T) {
	for _, end := range []struct {
		name string
		how  func(w *world, a *runner, leave func())
	}{
		{"the body returns", func(_ *world, _ *runner, leave func()) { leave() }},
		{"ctx ends", func(_ *world, a *runner, _ func()) { a.stop() }},
		{"stolen", func(w *world, _ *runner, _ func()) { w.steal("thief") }},
		{"deleted", func(w *world, _ *runner, _ func()) { w.srv.Delete(ns, name) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var j journal
				var m Monitor
				renewing := newWakeup()
				w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
					if r.Verb != "patch" {
						return leasetest.Fault{}
					}
					renewing.signal()
					return leasetest.Fault{Before: time.Second}
				})
				bored, leave := context.WithCancel(w.Context())
				a := w.run("a", func(s Session) {
					select {
					case <-s.Done():
					case <-bored.Done():
					}
				}, j.logger(), WithMonitor(&m))
				<-renewing
				end.how(w, a, leave)
				w.sleep(I)
				leave()
				a.quit()
				if got := j.said(); !strings.Contains(got, "lease lost") && !strings.Contains(got, "lease released") ||
					strings.Contains(got, "API server") || strings.Contains(got, "not released") {
					w.Errorf("logged\n%s", got)
				}
				if n := w.status(&m).Failures; n != 0 {
					w.Errorf("%d failures counted", n)
				}
			})
		})
	}
}
