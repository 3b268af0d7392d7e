package leasehold

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/leasetest"
)

// Over a long round trip a lease is acquired as soon as it can be (four round trips: TCP, TLS, a read and a write), and
// kept, also where no watch tells that a renewal took effect whose answer came late. Its leader does not read it again
// because an answer comes before the event, and the next renewal at once.
func TestLongRoundTrip(t *testing.T) {
	for _, tt := range []struct{ roundTrip, duration time.Duration }{
		{1600 * time.Millisecond, 15 * time.Second},
		{700 * time.Millisecond, 5 * time.Second},
		{550 * time.Millisecond, 5 * time.Second},
		{300 * time.Millisecond, 2 * time.Second},
		{200 * time.Millisecond, time.Second},
	} {
		for _, watch := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, D %v, watch %v", tt.roundTrip, tt.duration, watch), func(t *testing.T) {
				overNetwork(t, tt.roundTrip, func(t *testing.T, s *apiServer) {
					s.forbidWatch = !watch
					keepsLease(t, s, tt.roundTrip, tt.duration)
				})
			})
		}
	}
}

// keepsLease checks that the only candidate acquires a lease at once, and leads for 70 s.
func keepsLease(t *testing.T, s *apiServer, roundTrip, duration time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), 70*time.Second)
	defer cancel()
	var reads atomic.Int64
	s.client.OnRequest(func(r leasetest.Request) leasetest.Fault {
		if r.Verb == "get" {
			reads.Add(1)
		}
		return leasetest.Fault{}
	})
	began, sessions := time.Now(), 0
	for session := range Sessions(ctx, WithLease("x"), WithNamespace("default"), WithDuration(duration),
		WithRESTConfig(s.config()), unlogged, inVirtualTime) {
		sessions++
		if took := time.Since(began); sessions == 1 && took > 4*roundTrip+50*time.Millisecond {
			t.Errorf("acquired after %v", took)
		}
		<-session.Done()
		if ctx.Err() == nil {
			t.Errorf("after %v: %v", time.Since(began), session.Err())
		}
	}
	if sessions != 1 {
		t.Errorf("%d sessions", sessions)
	}
	if n := s.Dials(); n > 8 {
		t.Errorf("%d connections", n)
	}
	if n := reads.Load(); !s.forbidWatch && n > 10 { // the first is sent again while it is unanswered
		t.Errorf("%d reads", n)
	}
}

// A leader keeps its lease when all connections go dead without a word and none can be made for 8 s, and when only the
// present ones do, whenever that happens between two renewals.
func TestBlackHole(t *testing.T) {
	for offset := time.Duration(0); offset < I; offset += I / 10 {
		for _, tt := range []struct {
			lasts    time.Duration
			duration time.Duration
		}{
			{8 * time.Second, 15 * time.Second},
			{0, 15 * time.Second},
			{0, 2 * time.Second},
			{0, time.Second},
		} {
			t.Run(fmt.Sprintf("%v for %v, %v after a renewal", tt.duration, tt.lasts, offset), func(t *testing.T) {
				overNetwork(t, 2*time.Millisecond, func(t *testing.T, s *apiServer) {
					for session := range Sessions(t.Context(), WithLease("x"), WithNamespace("default"),
						WithDuration(tt.duration),
						WithRESTConfig(s.config()), unlogged, inVirtualTime) {
						time.Sleep(10*tt.duration + offset)
						s.SetDown(true)
						s.Kill()
						time.Sleep(tt.lasts)
						s.SetDown(false)
						time.Sleep(5 * tt.duration)
						if err := session.Err(); err != nil {
							t.Error(err)
						}
						if n := s.Dials(); n > 3 {
							t.Errorf("%d connections", n)
						}
						break
					}
				})
			})
		}
	}
}

// A client of client-go's keeps a connection that has gone dead until its own ping of it had no answer: 30 s of silence
// and 15 s. Until then all requests of the campaign go over it: the lease is lost, and acquired again only then.
func TestClientInBlackHole(t *testing.T) {
	for offset := time.Duration(0); offset < I; offset += I / 5 {
		overNetwork(t, 2*time.Millisecond, func(t *testing.T, s *apiServer) {
			transport := utilnet.SetTransportDefaults(&http.Transport{DialContext: s.Dial,
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true}})
			client, err := coordinationv1client.NewForConfigAndClient(&rest.Config{Host: "https://server.example",
				ContentConfig: rest.ContentConfig{ContentType: "application/json"}, QPS: -1},
				&http.Client{Transport: transport})
			if err != nil {
				t.Fatal(err)
			}
			var died time.Time
			for session := range Sessions(t.Context(), WithLease("x"), WithNamespace("default"), WithClient(client),
				unlogged, inVirtualTime) {
				if !died.IsZero() {
					break
				}
				time.Sleep(10*D + offset)
				s.Kill()
				died = time.Now()
				<-session.Done()
			}
			if took := time.Since(died); took < 40*time.Second || took > 45*time.Second+R/3 {
				t.Errorf("%v after a renewal: led again %v after the connection died", offset, took)
			}
			transport.CloseIdleConnections()
			for _, c := range s.Conns() {
				c.Close()
			}
		})
	}
}
