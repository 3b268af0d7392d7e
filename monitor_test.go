package leasehold

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/leasetest"
)

// status is that of the only lease in m.
func (w *world) status(m *Monitor) LeaseStatus {
	w.Helper()
	synctest.Wait()
	leases := m.Leases()
	if len(leases) != 1 {
		w.Fatalf("%v: %d leases, want 1", time.Now(), len(leases))
	}
	return leases[0]
}

// want fails unless ok holds for s.
func (w *world) want(s LeaseStatus, what string, ok bool) {
	w.Helper()
	if !ok {
		w.Errorf("%v: want %s: %+v", time.Now(), what, s)
	}
}

// The facts about a lease over the life of two campaigns.
func TestMonitorLife(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		leader := w.run("b", nil)
		time.Sleep(time.Minute)

		began := time.Now()
		a := w.run("a", func(s Session) { <-s.Done(); time.Sleep(time.Minute) },
			WithMonitor(&m), WithOverrun(func(Session) {}), inVirtualTime)
		s := w.status(&m)
		w.want(s, "the options", s.Namespace == ns && s.Name == name && s.Identity == "a" &&
			s.FieldManager == "leasehold" &&
			s.LeaseDurationSeconds == 15 && s.RenewDeadlineSeconds == 12 && s.RenewIntervalSeconds == 3)
		w.want(s, "a standby", s.Campaigning && s.StartTime.Equal(began) && !s.Leading && s.Since.Equal(began) &&
			s.ValidForSeconds == 0 && s.FencingToken == 0 && !s.Overrun && s.Following == "watch")
		w.want(s, "the Lease", s.Holder != nil && s.Holder.Identity == "b" &&
			s.Holder.AcquireTime.Equal(w.lease().Spec.AcquireTime.Time) &&
			s.ResourceVersion == w.lease().ResourceVersion && s.Updates == 1 && s.UpdateTime.Equal(began))
		w.want(s, "its expiry", s.Holder.ExpiryTime.Sub(began) == D)
		w.want(s, "no counts", s.Sessions+s.Renewals+s.Failures == 0 && s.LastError == "" && s.LastErrorTime.IsZero())
		w.sleep(time.Minute)
		s = w.status(&m)
		w.want(s, "the holder to renew", s.Updates >= 20 && s.Updates <= 24 &&
			s.Holder.RenewTime.After(began.Add(time.Minute-I-eps)) && s.Since.Equal(began))

		leader.quit()
		w.wantLeader("a")
		acquired := time.Now()
		s = w.status(&m)
		w.want(s, "a leader", s.Leading && s.Since.Equal(acquired) && s.ValidForSeconds == R.Seconds() &&
			s.Sessions == 1 && !s.Overrun &&
			fmt.Sprint(s.FencingToken) == s.ResourceVersion && s.Holder.Identity == "a" && s.Holder.Transitions == 1)
		w.sleep(time.Hour)
		s = w.status(&m)
		w.want(s, "a leader that renews", s.Leading && !s.WindingDown && s.Since.Equal(acquired) &&
			s.ValidForSeconds > (R-I-eps).Seconds() &&
			s.Renewals >= 1200 && s.Renewals <= 1340 && s.RenewalLatency.Count == s.Renewals && s.Failures == 0)

		w.steal("thief")
		lost := time.Now()
		s = w.status(&m)
		w.want(s, "a loss", !s.Leading && s.Since.Equal(lost) && s.ValidForSeconds == 0 && s.FencingToken == 0 &&
			!s.Overrun &&
			s.Losses[taken] == 1 && s.Holder.Identity == "thief")
		w.sleep(D)
		s = w.status(&m)
		w.want(s, "work that goes on", s.Overrun && !s.Leading)
		w.sleep(time.Minute - D)
		w.wantLeader("a") // the body has returned
		s = w.status(&m)
		w.want(s, "the second session", s.Leading && !s.Overrun && s.Sessions == 2 && s.Losses[taken] == 1)
		renewals, updates := s.Renewals, s.Updates

		a.stop() // the body winds down for a minute more
		w.sleep(time.Second)
		s = w.status(&m)
		w.want(s, "a leader that winds down", s.Campaigning && s.Leading && s.WindingDown &&
			s.ValidForSeconds > (R-I-eps).Seconds() && s.FencingToken > 0 && s.Holder.Identity == "a")
		a.quit()
		released := time.Now()
		w.sleep(time.Hour)
		s = w.status(&m)
		w.want(s, "a campaign that is over", !s.Campaigning && !s.Leading && !s.WindingDown &&
			s.Since.Equal(released) &&
			s.Following == "" && s.Holder == nil &&
			s.Sessions == 2 && s.Renewals > renewals && s.Updates > updates)
		renewals, updates = s.Renewals, s.Updates

		// Another campaign, whose counts go on.
		began = time.Now()
		a = w.run("a2", nil, WithMonitor(&m), WithDuration(60*time.Second), WithFieldManager("other"))
		s = w.status(&m)
		w.want(s, "the second campaign", s.Campaigning && s.StartTime.Equal(began) && s.Identity == "a2" &&
			s.LeaseDurationSeconds == 60 && s.FieldManager == "other" &&
			s.Leading && s.Sessions == 3 && s.Losses[taken] == 1 && s.Renewals == renewals && s.Updates > updates)
		a.quit()
	})
}

// Each loss is counted by its reason, and nothing else is.
func TestMonitorLosses(t *testing.T) {
	var nap atomic.Int64
	for reason, lose := range map[string]func(*world){
		expired: func(w *world) { w.srv.Client("a").Partition(true) },
		slept:   func(w *world) { nap.Add(int64(time.Hour)) },
		taken:   func(w *world) { w.steal("thief") },
		deleted: func(w *world) { w.srv.Delete(ns, name) },
		emptied: func(w *world) { w.steal("") },
		edited: func(w *world) {
			w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(1)) })
		},
	} {
		t.Run(reason, func(t *testing.T) {
			inWorld(t, func(w *world) {
				nap.Store(0)
				var m Monitor
				a := w.run("a", nil, WithMonitor(&m), withClock(sleepyClock{&nap}))
				time.Sleep(time.Minute)
				lose(w)
				w.sleep(D)
				s := w.status(&m)
				for _, r := range lossReasons {
					want := uint64(0)
					if r == reason {
						want = 1
					}
					if got, counted := s.Losses[r]; got != want || !counted {
						t.Errorf("%d losses counted as %s (%v), want %d", got, r, counted, want)
					}
				}
				if len(s.Losses) != len(lossReasons) {
					t.Errorf("losses %v", s.Losses)
				}
				w.srv.Client("a").Partition(false)
				a.quit()
			})
		})
	}
}

// Renewals are counted by how long they took.
func TestMonitorLatency(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		var took atomic.Int64
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "patch" {
				return leasetest.Fault{Before: time.Duration(took.Load())}
			}
			return leasetest.Fault{}
		})
		a := w.run("a", nil, WithMonitor(&m), WithDuration(120*time.Second), WithRenewDeadline(100*time.Second),
			WithRenewInterval(10*time.Second), inVirtualTime)
		if h := w.status(&m).RenewalLatency; h.Count != 0 || h.SumSeconds != 0 || len(h.Buckets) != len(latencyBounds) {
			t.Errorf("before the first renewal: %+v", h)
		}
		for _, d := range []time.Duration{0, 3 * time.Millisecond, 250 * time.Millisecond, 9900 * time.Millisecond} {
			took.Store(int64(d))
			before := w.status(&m).Renewals
			for w.status(&m).Renewals == before {
				time.Sleep(100 * time.Millisecond)
			}
			if got := w.status(&m).LastRenewalSeconds; got != d.Seconds() {
				t.Errorf("the last renewal took %v s, want %v", got, d.Seconds())
			}
		}
		h := w.status(&m).RenewalLatency
		if h.Count != 4 || h.SumSeconds < 10.152 || h.SumSeconds > 10.154 {
			t.Errorf("%d renewals took %v s, want 4 and 10.153", h.Count, h.SumSeconds)
		}
		want := map[float64]uint64{0.001: 1, 0.0025: 1, 0.005: 2, 0.1: 2, 0.25: 3, 5: 3, 10: 4}
		for i, b := range h.Buckets {
			if n, stated := want[b.UpToSeconds]; stated && b.Count != n {
				t.Errorf("%d renewals of at most %v s, want %d", b.Count, b.UpToSeconds, n)
			}
			if i > 0 && (b.Count < h.Buckets[i-1].Count || b.UpToSeconds <= h.Buckets[i-1].UpToSeconds) {
				t.Errorf("buckets out of order: %v", h.Buckets)
			}
		}
		a.quit()
	})
	var l leaseStats
	l.renewed(time.Minute)
	if h := l.histogram(); h.Count != 1 || h.Buckets[len(h.Buckets)-1].Count != 0 || h.SumSeconds != 60 {
		t.Errorf("a renewal of a minute: %+v", h)
	}
}

// What failed is counted, and the newest failure told.
func TestMonitorFailures(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		a := w.run("a", nil, WithMonitor(&m))
		w.fail("a", leasetest.ServiceUnavailable())
		w.sleep(I + eps)
		failed := time.Now()
		s := w.status(&m)
		w.want(s, "failures", s.Failures > 0 && s.Failures < 10 &&
			s.LastError == "patch lease default/reconciler: apiserver is shutting down")
		w.want(s, "when", failed.Sub(s.LastErrorTime) < time.Second)
		w.srv.Client("a").OnRequest(nil)
		w.sleep(time.Hour)
		again := w.status(&m)
		w.want(again, "the failure still", again.Failures >= s.Failures && again.Failures < s.Failures+5 &&
			again.LastError != "")

		// Somebody else's write is no failure.
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Labels = map[string]string{"team": "storage"} })
		w.steal("thief")
		w.sleep(time.Minute)
		s = w.status(&m)
		w.want(s, "no more failures", s.Failures == again.Failures && s.Losses[taken] == 1)
		a.quit()
	})
}

// How the Lease is followed: by a watch, by polling where that is forbidden, not at all in an outage.
func TestMonitorFollowing(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		client := w.srv.Client("a")
		a := w.run("a", nil, WithMonitor(&m))
		following := func(want string) {
			t.Helper()
			if got := w.status(&m).Following; got != want {
				t.Errorf("%v: following by %q, want %q", time.Now(), got, want)
			}
		}
		following("watch")
		w.fail("a", leasetest.ConnectionRefused())
		client.CloseWatches(nil)
		w.sleep(time.Minute)
		following("")
		client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "watch" {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			}
			return leasetest.Fault{}
		})
		w.sleep(time.Minute)
		following("poll")
		w.fail("a", leasetest.ConnectionRefused())
		w.sleep(time.Minute)
		following("")
		client.OnRequest(nil)
		w.sleep(10 * time.Minute) // a watch is tried again
		following("watch")
		a.quit()
		following("")
	})
}

// Two leases are sorted; of two campaigns for one lease, the one that leads is shown.
func TestMonitorManyLeases(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		ctx, cancel := context.WithCancel(w.Context())
		var loops sync.WaitGroup
		for i, lease := range [][2]string{{"ns2", "a"}, {"ns1", "b"}, {"ns2", "a"}, {"ns1", "a"}} {
			loops.Go(func() {
				for s := range Sessions(ctx,
					w.options(fmt.Sprint("candidate ", i), WithNamespace(lease[0]), WithLease(lease[1]),
						WithMonitor(&m))...) {
					<-s.Done()
				}
			})
			w.sleep(time.Second)
		}
		var got []string
		for _, s := range m.Leases() {
			got = append(got, fmt.Sprintf("%s/%s %s %v", s.Namespace, s.Name, s.Identity, s.Leading))
		}
		want := []string{"ns1/a candidate 3 true", "ns1/b candidate 1 true", "ns2/a candidate 0 true"}
		if !slices.Equal(got, want) {
			t.Errorf("leases %q, want %q", got, want)
		}
		if err := m.Check(nil); err != nil {
			t.Error(err)
		}
		cancel()
		loops.Wait()
	})
}

// A zero Monitor knows no leases and says so.
func TestMonitorZero(t *testing.T) {
	var m Monitor
	if got := m.Leases(); got == nil || len(got) != 0 {
		t.Errorf("leases %v", got)
	}
	if err := m.Check(nil); err != nil {
		t.Error(err)
	}
	response := httptest.NewRecorder()
	m.ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/", nil))
	if got := strings.Join(strings.Fields(response.Body.String()), ""); got != `{"leases":[]}` {
		t.Errorf("answered %s", got)
	}
}

// The JSON, whose field names are promised.
func TestMonitorJSON(t *testing.T) {
	golden, err := os.ReadFile("testdata/monitor.json")
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, func(w *world) {
		var m Monitor
		client := w.srv.Client("a")
		client.OnRequest(func(r leasetest.Request) leasetest.Fault {
			switch {
			case r.Count == 1:
				return leasetest.Fault{Err: leasetest.ServiceUnavailable()}
			case r.Verb == "patch":
				return leasetest.Fault{After: 5 * time.Millisecond}
			}
			return leasetest.Fault{}
		})
		late := func(o *options) { o.hooks.chance = func(n time.Duration) time.Duration { return n - 1 } }
		a := w.run("a", nil, WithMonitor(&m), late)
		w.sleep(4 * time.Second) // one renewal
		serve := func(method string) *httptest.ResponseRecorder {
			response := httptest.NewRecorder()
			m.ServeHTTP(response, httptest.NewRequest(method, "/leases", nil))
			return response
		}
		response := serve(http.MethodGet)
		if response.Code != http.StatusOK || response.Header().Get("Content-Type") != "application/json" {
			t.Errorf("answered %d %v", response.Code, response.Header())
		}
		if got := byChance.ReplaceAllString(response.Body.String(), "${1}…"); got != string(golden) {
			t.Errorf("answered\n%s\nwant\n%s", got, golden)
		}
		if head := serve(http.MethodHead); head.Code != http.StatusOK ||
			head.Header().Get("Content-Type") != "application/json" {
			t.Errorf("HEAD answered %d %v", head.Code, head.Header())
		}
		if post := serve(http.MethodPost); post.Code != http.StatusMethodNotAllowed ||
			post.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("POST answered %d %v", post.Code, post.Header())
		}
		a.quit()
	})
}

// Times of a Lease that JSON cannot have are left out. A status that cannot be encoded is no success.
func TestMonitorYears(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		serve := func() *httptest.ResponseRecorder {
			response := httptest.NewRecorder()
			m.ServeHTTP(response, httptest.NewRequest(http.MethodGet, "/", nil))
			return response
		}
		w.run("a", nil, WithMonitor(&m))
		w.srv.Edit(ns, name, func(l *coordinationv1.Lease) {
			l.Spec.HolderIdentity = new("thief")
			l.Spec.AcquireTime = &metav1.MicroTime{Time: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}
			l.Spec.RenewTime = &metav1.MicroTime{Time: time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)}
		})
		w.sleep(time.Second)
		var status struct{ Leases []LeaseStatus }
		response := serve()
		if err := json.Unmarshal(response.Body.Bytes(), &status); err != nil || response.Code != http.StatusOK {
			t.Fatalf("answered %d, %v", response.Code, err)
		}
		holder := status.Leases[0].Holder
		if holder.Identity != "thief" || !holder.AcquireTime.IsZero() || !holder.RenewTime.IsZero() {
			t.Errorf("held by %+v", holder)
		}
		for _, l := range m.all() {
			l.mu.Lock()
			l.lastErrorTime = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
			l.mu.Unlock()
		}
		if response := serve(); response.Code != http.StatusInternalServerError || response.Body.Len() == 0 {
			t.Errorf("answered %d", response.Code)
		}
	})
}

// What chance decides in the JSON: times, and for how long the lease is valid.
var byChance = regexp.MustCompile(`"[0-9-]+T[0-9:.]+Z"|("validForSeconds": )[0-9.]+`)

// Check: what only a restart will mend is an error, and nothing else is.
func TestMonitorCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		test func(w *world, m *Monitor, healthy, sick func(d time.Duration, text string))
	}{
		{"a leader and a standby, for a day", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			a, b := w.run("a", nil, WithMonitor(m)), w.run("b", nil, WithMonitor(m))
			healthy(long(24*time.Hour), "")
			a.quit()
			b.quit()
		}},
		{"an API outage of an hour", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			a, b := w.run("a", nil, WithMonitor(m)), w.run("b", nil, WithMonitor(m))
			for _, fault := range []leasetest.Fault{{Err: leasetest.ConnectionRefused()}, {Drop: leasetest.TheRequest},
				{Drop: leasetest.TheReply}} {
				for _, client := range []string{"a", "b"} {
					w.srv.Client(client).OnRequest(func(leasetest.Request) leasetest.Fault { return fault })
					w.srv.Client(client).CloseWatches(nil)
				}
				healthy(long(time.Hour), "")
			}
			w.srv.Client("a").OnRequest(nil)
			w.srv.Client("b").OnRequest(nil)
			healthy(time.Minute, "")
			a.quit()
			b.quit()
		}},
		{"an API server that refuses", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
				return leasetest.Fault{Err: leasetest.Forbidden(r)}
			})
			a := w.run("a", nil, WithMonitor(m))
			healthy(long(time.Hour), "")
			a.quit()
		}},
		{"the machine sleeps", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			var slept atomic.Int64
			a := w.run("a", nil, WithMonitor(m), withClock(sleepyClock{&slept}))
			b := w.run("b", nil, WithMonitor(m), withClock(sleepyClock{&slept}))
			healthy(time.Minute, "")
			slept.Add(int64(time.Hour))
			healthy(time.Minute, "")
			a.quit()
			b.quit()
		}},
		{"work goes on without the lease", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			returns := make(chan struct{})
			a := w.run("a", func(Session) { <-returns }, WithMonitor(m), WithOverrun(func(Session) {}))
			healthy(time.Minute, "")
			w.steal("thief")
			healthy(R-I-eps, "")
			w.sleep(D - R + I)
			sick(long(time.Hour), `lease default/reconciler: work goes on without it: lease lost: now held by "thief"`)
			if err := m.Check(nil); strings.Contains(err.Error(), "stuck") {
				w.Error(err) // the campaign waits, as it should
			}
			close(returns)
			synctest.Wait()
			healthy(time.Minute, "")
			a.quit()
		}},
		{"the body goes on after Release", func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
			returns := make(chan struct{})
			for _, lost := range []bool{false, true} {
				a := w.run("a", func(s Session) {
					if lost {
						w.steal("thief")
						<-s.Done()
					}
					s.Release()
					<-returns
				}, WithMonitor(m))
				healthy(long(time.Hour), "")
				returns <- struct{}{}
				healthy(time.Minute, "")
				a.stop()
				close(returns)
				<-a.done
				returns = make(chan struct{})
			}
		}},
		{"the function of WithOverrun does not return",
			func(w *world, m *Monitor, healthy, sick func(time.Duration, string)) {
				returns := make(chan struct{})
				a := w.run("a", func(s Session) { <-s.Done(); time.Sleep(D + eps) }, WithMonitor(m),
					WithOverrun(func(Session) { <-returns }))
				w.steal("thief")
				w.sleep(D + D + R)
				sick(long(time.Hour), "work goes on without it")
				close(returns)
				synctest.Wait()
				healthy(time.Minute, "")
				a.quit()
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var m Monitor
				check := func(d time.Duration, ok func(error) bool) {
					for end := time.Now().Add(d); time.Now().Before(end); w.sleep(500 * time.Millisecond) {
						if err := m.Check(nil); !ok(err) {
							w.Fatalf("%v: %v", time.Now(), err)
						}
					}
				}
				tt.test(w, &m,
					func(d time.Duration, _ string) { check(d, func(err error) bool { return err == nil }) },
					func(d time.Duration, text string) {
						check(d, func(err error) bool { return err != nil && strings.Contains(err.Error(), text) })
					})
			})
		})
	}
}

// A campaign whose client ignores the contexts of its requests, and does not answer either, is stuck
// wherever that happens. Check says so soon, and no longer than it lasts.
func TestMonitorCheckStuck(t *testing.T) {
	for _, at := range []struct {
		name string
		verb string
		do   func(w *world, c *runner) // what comes once that verb hangs
	}{
		{"the first read", "get", nil},
		{"taking the lease", "create", nil},
		{"opening the watch", "watch", nil},
		{"a renewal", "patch", func(w *world, c *runner) { w.sleep(D) }},
		{"the end, during a renewal", "patch", func(w *world, c *runner) { w.sleep(I); c.stop() }},
		{"the end of a standby, during a read", "watch", func(w *world, c *runner) { c.stop() }},
	} {
		t.Run(at.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var m Monitor
				client := &deafClient{LeasesGetter: w.srv.Client("a"), verb: at.verb, answer: make(chan struct{})}
				if err := m.Check(nil); err != nil {
					t.Error(err)
				}
				c := w.run("a", nil, WithMonitor(&m), WithClient(client))
				if at.do != nil {
					at.do(w, c)
				}
				w.sleep(3 * D)
				w.wantStuck(&m)
				close(client.answer)
				w.sleep(D)
				if err := m.Check(nil); err != nil {
					t.Errorf("after it was answered: %v", err)
				}
				c.quit()
			})
		})
	}
}

func (w *world) wantStuck(m *Monitor) {
	w.Helper()
	if err := m.Check(nil); err == nil || !strings.Contains(err.Error(), "lease default/reconciler: campaign stuck: ") {
		w.Errorf("%v: %v, want a stuck campaign", time.Now(), err)
	}
}

// The same where Release is called of the session, or of one before it.
func TestMonitorCheckStuckAfterRelease(t *testing.T) {
	for name, body := range map[string]func(s, before Session){
		"by the body": func(s, _ Session) { <-s.Done(); s.Release() },
		"by others as the session ends": func(s, _ Session) {
			context.AfterFunc(s.Context(), func() { s.Release() })
			<-s.Done()
		},
		"of the session before": func(s, before Session) {
			context.AfterFunc(s.Context(), func() {
				time.Sleep(2 * D)
				before.Release()
			})
			<-s.Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var m Monitor
				var before Session
				client := &deafClient{LeasesGetter: w.srv.Client("a"), verb: "patch", answer: make(chan struct{})}
				client.hears.Store(true)
				a := w.run("a", func(s Session) {
					if before == (Session{}) {
						before = s
						return
					}
					body(s, before)
				}, WithMonitor(&m), WithClient(client))
				w.sleep(I) // the second session
				client.hears.Store(false)
				w.sleep(I) // a renewal
				w.steal("thief")
				w.sleep(3 * D)
				w.wantStuck(&m)
				w.sleep(D)
				w.wantStuck(&m)
				close(client.answer)
				w.sleep(D)
				if err := m.Check(nil); err != nil {
					t.Errorf("after it was answered: %v", err)
				}
				a.quit()
				w.sleep(2 * D) // for who calls Release late
			})
		})
	}
}

// The same where a campaign ends that looks whether it took the lease unheard.
func TestMonitorCheckStuckInDoubt(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		client := &deafClient{LeasesGetter: w.srv.Client("a"), answer: make(chan struct{})}
		w.srv.Client("a").OnRequest(func(r leasetest.Request) leasetest.Fault {
			if r.Verb == "create" {
				return leasetest.Fault{Err: leasetest.EOF(), Drop: leasetest.TheRequest, Before: time.Second}
			}
			return leasetest.Fault{}
		})
		a := w.run("a", nil, WithMonitor(&m), WithClient(client))
		b := w.run("b", nil)
		w.sleep(time.Minute)
		w.wantLeader("b")
		client.verb = "get"
		a.stop()
		w.sleep(3 * D)
		w.wantStuck(&m)
		close(client.answer)
		a.quit()
		b.quit()
	})
}

// A deafClient answers requests of one verb only once answer is closed, whatever their contexts say.
type deafClient struct {
	coordinationv1client.LeasesGetter
	verb   string
	answer chan struct{}
	hears  atomic.Bool // for now
}

func (c *deafClient) Leases(namespace string) coordinationv1client.LeaseInterface {
	return deafLeases{c.LeasesGetter.Leases(namespace), c}
}

type deafLeases struct {
	coordinationv1client.LeaseInterface
	client *deafClient
}

func (l deafLeases) hear(verb string) {
	if verb == l.client.verb && !l.client.hears.Load() {
		<-l.client.answer
	}
}

func (l deafLeases) Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error) {
	l.hear("get")
	return l.LeaseInterface.Get(ctx, name, opts)
}

func (l deafLeases) Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	l.hear("watch")
	return l.LeaseInterface.Watch(ctx, opts)
}

func (l deafLeases) Create(
	ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	l.hear("create")
	return l.LeaseInterface.Create(ctx, lease, opts)
}

func (l deafLeases) Patch(
	ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string,
) (*coordinationv1.Lease, error) {
	if pt == types.MergePatchType {
		l.hear("patch")
	}
	return l.LeaseInterface.Patch(ctx, name, pt, data, opts, sub...)
}

// Reading a Monitor never keeps a campaign waiting, not even a reader that never gets to the end.
func TestMonitorNeverBlocks(t *testing.T) {
	inWorld(t, func(w *world) {
		var m Monitor
		a := w.run("a", nil, WithMonitor(&m))
		more := make(chan struct{})
		var readers sync.WaitGroup
		for range 10 {
			readers.Go(func() {
				m.ServeHTTP(slowWriter{httptest.NewRecorder(), more}, httptest.NewRequest(http.MethodGet, "/", nil))
			})
		}
		synctest.Wait() // they write
		w.sleep(time.Hour)
		w.wantLeader("a")
		if s := w.status(&m); s.Renewals < 1200 || w.count() != 1 {
			t.Errorf("%d renewals in an hour, in %d sessions", s.Renewals, w.count())
		}
		b := w.run("b", nil, WithMonitor(&m)) // nor does it keep one from beginning
		b.quit()
		close(more)
		readers.Wait()
		a.quit()
	})
}

// A slowWriter takes nothing until more is closed.
type slowWriter struct {
	*httptest.ResponseRecorder
	more chan struct{}
}

func (w slowWriter) Write(p []byte) (int, error) { <-w.more; return len(p), nil }

// While work goes on without the lease, Check reports that alone, and only as long as it lasts.
func TestMonitorAfterOverrun(t *testing.T) {
	for name, overrun := range map[string]func(Session){
		"no overrun function": nil, "an overrun function that hangs": func(Session) { time.Sleep(20 * D) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var m Monitor
				opts := []Option{WithMonitor(&m)}
				if overrun != nil {
					opts = append(opts, WithOverrun(overrun))
				}
				release := make(chan struct{})
				a := w.run("a", func(Session) { <-release }, opts...)
				w.sleep(time.Second)
				w.steal("thief")
				w.sleep(2 * D)
				got := errorText(m.Check(nil))
				if !strings.Contains(got, "work goes on without it") || strings.Contains(got, "stuck") {
					t.Errorf("Check: %s", got)
				}
				if !w.status(&m).Overrun {
					t.Error("the status does not say so")
				}
				close(release)
				// So that a stays a standby.
				w.srv.Edit(ns, name, func(l *coordinationv1.Lease) { l.Spec.LeaseDurationSeconds = new(int32(3600)) })
				w.sleep(20 * D)
				if err := m.Check(nil); err != nil || w.status(&m).Overrun {
					t.Errorf("Check after the work has returned: %v", err)
				}
				a.quit()
			})
		})
	}
}
