package leaserest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// An encoding is one that the API server answers in.
type encoding struct {
	name, content string
	object        func(kind string, object marshaler) []byte
	event         func(kind watch.EventType, object []byte) []byte
}

type marshaler interface{ Marshal() ([]byte, error) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func sealed(kind string, raw []byte) []byte {
	unknown := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "coordination.k8s.io/v1", Kind: kind}, Raw: raw}
	return append([]byte("k8s\x00"), must(unknown.Marshal())...)
}

var encodings = []encoding{
	{
		"JSON", "application/json",
		func(kind string, object marshaler) []byte {
			return append([]byte(`{"kind":"`+kind+`",`), must(json.Marshal(object))[1:]...)
		},
		func(kind watch.EventType, object []byte) []byte {
			return must(json.Marshal(map[string]any{"type": kind, "object": json.RawMessage(object)}))
		},
	},
	{
		"protobuf", "application/vnd.kubernetes.protobuf",
		func(kind string, object marshaler) []byte { return sealed(kind, must(object.Marshal())) },
		func(kind watch.EventType, object []byte) []byte {
			event := metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: object}}
			data := must(event.Marshal())
			return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
		},
	},
}

func testLease() *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: "x", ResourceVersion: "7"},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: new("a"),
			RenewTime: &metav1.MicroTime{Time: time.UnixMicro(1).UTC()}},
	}
}

// hugeLease returns one that is longer than what is read of an answer.
func hugeLease() *coordinationv1.Lease {
	lease := testLease()
	lease.Annotations = map[string]string{"x": strings.Repeat("x", mostBytes+1<<20)}
	return lease
}

// serve returns the Leases of a server that answers as handler does.
func serve(t *testing.T, handler http.HandlerFunc) *Leases {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := New(&rest.Config{Host: s.URL + "/prefix", UserAgent: "agent"}, transport)
	if err != nil {
		t.Fatal(err)
	}
	return client.Leases("ns")
}

// Each method makes the request of the API's convention, and reads the answer.
func TestRequests(t *testing.T) {
	ctx := t.Context()
	for _, tt := range []struct {
		name string
		do   func(*Leases) error
		want string
	}{
		{"get", func(l *Leases) error { return holds(l.Get(ctx, "x", metav1.GetOptions{})) }, "GET /leases/x  "},
		{"list", func(l *Leases) error {
			list, err := l.List(ctx, metav1.ListOptions{LabelSelector: "a=b"})
			if err == nil && len(list.Items) != 1 {
				err = errors.New("no items")
			}
			return err
		}, "GET /leases?labelSelector=a%3Db  "},
		{"create", func(l *Leases) error {
			return holds(l.Create(ctx, &coordinationv1.Lease{}, metav1.CreateOptions{FieldManager: "m"}))
		}, `POST /leases?fieldManager=m application/json {"kind":"Lease","apiVersion":"coordination.k8s.io/v1",` +
			`"metadata":{},"spec":{}}`},
		{"merge patch", func(l *Leases) error {
			return holds(l.Patch(ctx, "x", types.MergePatchType, []byte("{}"), metav1.PatchOptions{FieldManager: "m"}))
		}, "PATCH /leases/x?fieldManager=m application/merge-patch+json {}"},
		{"apply", func(l *Leases) error {
			return holds(l.Patch(ctx, "x", types.ApplyPatchType, []byte("{}"),
				metav1.PatchOptions{FieldManager: "m", Force: new(true)}))
		}, "PATCH /leases/x?fieldManager=m&force=true application/apply-patch+yaml {}"},
		{"delete", func(l *Leases) error {
			return l.Delete(
				ctx, "x", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: new("7")}})
		}, `DELETE /leases/x application/json {"kind":"DeleteOptions","apiVersion":"coordination.k8s.io/v1",` +
			`"preconditions":{"resourceVersion":"7"}}`},
		{"watch", func(l *Leases) error {
			w, err := l.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=x", ResourceVersion: "7",
				AllowWatchBookmarks: true})
			if err == nil {
				for range w.ResultChan() {
				}
			}
			return err
		}, "GET /leases?allowWatchBookmarks=true&fieldSelector=metadata.name%3Dx&resourceVersion=7&watch=true  "},
	} {
		for _, e := range encodings {
			t.Run(tt.name+" "+e.name, func(t *testing.T) {
				var got string
				l := serve(t, func(w http.ResponseWriter, req *http.Request) {
					body, _ := io.ReadAll(req.Body)
					path := strings.TrimPrefix(req.URL.RequestURI(),
						"/prefix/apis/coordination.k8s.io/v1/namespaces/ns")
					if agent := req.Header.Get("User-Agent"); agent != "agent" {
						t.Errorf("user agent %q", agent)
					}
					got = strings.Join([]string{req.Method, path, req.Header.Get("Content-Type"), string(body)}, " ")
					w.Header().Set("Content-Type", e.content)
					switch {
					case req.URL.Query().Get("watch") != "":
					case tt.name == "list":
						w.Write(e.object("LeaseList",
							&coordinationv1.LeaseList{Items: []coordinationv1.Lease{*testLease()}}))
					default:
						w.Write(e.object("Lease", testLease()))
					}
				})
				if err := tt.do(l); err != nil {
					t.Error(err)
				}
				if got != tt.want {
					t.Errorf("%s\nwant %s", got, tt.want)
				}
			})
		}
	}
}

func holds(lease *coordinationv1.Lease, err error) error {
	if err == nil && (lease.ResourceVersion != "7" || *lease.Spec.HolderIdentity != "a" ||
		lease.Spec.RenewTime.UnixMicro() != 1) {
		err = errors.New("another lease")
	}
	return err
}

// What is no success is an error that says what the server said, and when it wants to be asked again. It is asked once.
func TestFailures(t *testing.T) {
	status := &metav1.Status{Status: metav1.StatusFailure, Code: 409, Reason: metav1.StatusReasonConflict,
		Message: "modified"}
	for _, e := range encodings {
		for _, tt := range []struct {
			name, content string
			code          int
			body          []byte
			check         func(error) bool
		}{
			{"a Status", e.content, 409, e.object("Status", status), func(err error) bool {
				return apierrors.IsConflict(err) && strings.Contains(err.Error(), "modified")
			}},
			{"no Status, from a proxy", "text/html", 503, []byte("<p>no backend</p>"), func(err error) bool {
				return apierrors.IsServiceUnavailable(err) &&
					apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
			}},
			{"a redirect, to a server that would be sent our credentials", "text/html", 307, nil, nil},
			{"another kind of object", e.content, 200, e.object("Pod", testLease()), nil},
			{"no object", e.content, 200, []byte("nonsense"), nil},
			{"another encoding", "text/plain", 200, []byte("ok"), nil},
		} {
			t.Run(e.name+", "+tt.name, func(t *testing.T) {
				var requests atomic.Int32
				l := serve(t, func(w http.ResponseWriter, _ *http.Request) {
					requests.Add(1)
					w.Header().Set("Content-Type", tt.content)
					w.Header().Set("Retry-After", "7")
					w.Header().Set("Location", "/elsewhere")
					w.WriteHeader(tt.code)
					w.Write(tt.body)
				})
				_, err := l.Get(t.Context(), "x", metav1.GetOptions{})
				if err == nil || tt.check != nil && !tt.check(err) {
					t.Error(err)
				}
				if seconds, _ := apierrors.SuggestsClientDelay(err); tt.code >= 300 && seconds != 7 {
					t.Errorf("asked for %d s, want 7", seconds)
				}
				if err := l.Delete(t.Context(), "x", metav1.DeleteOptions{}); (err == nil) != (tt.code < 300) {
					t.Error(err)
				}
				if n := requests.Load(); n != 2 {
					t.Errorf("%d requests for 2", n)
				}
			})
		}
	}
}

// A watch brings the events, and ends with the answer. What cannot be decoded is an ERROR event.
func TestWatch(t *testing.T) {
	status := &metav1.Status{Status: metav1.StatusFailure, Code: 410, Reason: metav1.StatusReasonExpired}
	for _, e := range encodings {
		lease := e.object("Lease", testLease())
		for _, tt := range []struct {
			name string
			body []byte
			want string
		}{
			{"it ends", nil, ""},
			{"events", slicesOf(e.event(watch.Added, lease), e.event(watch.Modified, lease),
				e.event(watch.Bookmark, lease), e.event(watch.Deleted, lease)),
				"ADDED 7, MODIFIED 7, BOOKMARK 7, DELETED 7"},
			{"an error", e.event(watch.Error, e.object("Status", status)), "ERROR 410"},
			{"half an event", slicesOf(e.event(watch.Added, lease), e.event(watch.Modified, lease)[:20]), "ADDED 7"},
			{"another object", e.event(watch.Added, e.object("Pod", testLease())), "ERROR 500"},
			{"nonsense", []byte("\xff\xff\xff\xff"), "ERROR 500"},
			{"an event that is too long", slicesOf(e.event(watch.Added, lease),
				e.event(watch.Modified, e.object("Lease", hugeLease()))), "ADDED 7, ERROR 500"},
		} {
			t.Run(e.name+", "+tt.name, func(t *testing.T) {
				l := serve(t, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", e.content+";stream=watch")
					w.Write(tt.body)
				})
				w, err := l.Watch(t.Context(), metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for event := range w.ResultChan() {
					switch object := event.Object.(type) {
					case *coordinationv1.Lease:
						got = append(got, string(event.Type)+" "+object.ResourceVersion)
					case *metav1.Status:
						got = append(got, string(event.Type)+" "+http.StatusText(int(object.Code)))
					}
				}
				want := strings.NewReplacer("410", "Gone", "500", "Internal Server Error").Replace(tt.want)
				if s := strings.Join(got, ", "); s != want {
					t.Errorf("%s, want %s", s, want)
				}
			})
		}
	}
}

func slicesOf(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// Stop, or the end of its context, ends a watch that nobody reads from.
func TestWatchStops(t *testing.T) {
	for _, how := range []string{"Stop", "context"} {
		t.Run(how, func(t *testing.T) {
			l := serve(t, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", encodings[0].content)
				w.Write(encodings[0].event(watch.Added, encodings[0].object("Lease", testLease())))
				w.(http.Flusher).Flush()
				<-req.Context().Done()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			w, err := l.Watch(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if how == "Stop" {
				w.Stop()
			} else {
				cancel()
			}
			for range w.ResultChan() { // an event may have come before
			}
		})
	}
}

// The event of a write has the object that the answer had: it is not decoded a second time. One that differs is.
func TestWatchEcho(t *testing.T) {
	e := encodings[1]
	written, other := e.object("Lease", testLease()), testLease()
	other.ResourceVersion = "8"
	patched := make(chan struct{})
	l := serve(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", e.content)
		if req.Method == http.MethodPatch {
			w.Write(written)
			return
		}
		w.(http.Flusher).Flush()
		<-patched
		for _, object := range [][]byte{written, e.object("Lease", other), written} {
			w.Write(e.event(watch.Modified, object))
		}
	})
	w, err := l.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := l.Patch(t.Context(), "x", types.MergePatchType, nil, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	close(patched)
	var same []bool
	for event := range w.ResultChan() {
		same = append(same, event.Object.(*coordinationv1.Lease) == answer)
	}
	if want := []bool{true, false, false}; !slices.Equal(same, want) {
		t.Errorf("the object of the answer: %v, want %v", same, want)
	}
	if _, err := l.Patch(t.Context(), "x", types.MergePatchType, nil, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if l.patched.lease != nil {
		t.Error("an answer is kept although no watch is open")
	}
}

// The event may come before the answer to the write.
func TestWatchEchoFirst(t *testing.T) {
	e := encodings[1]
	written := e.object("Lease", testLease())
	patching, watched := make(chan struct{}), make(chan struct{})
	l := serve(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", e.content)
		if req.Method == http.MethodPatch {
			close(patching)
			<-watched
			w.Write(written)
			return
		}
		w.(http.Flusher).Flush()
		<-patching
		w.Write(e.event(watch.Modified, written))
		w.(http.Flusher).Flush()
		<-req.Context().Done()
	})
	w, err := l.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var event watch.Event
	go func() {
		event = <-w.ResultChan()
		close(watched)
	}()
	answer, err := l.Patch(t.Context(), "x", types.MergePatchType, nil, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if event.Object.(*coordinationv1.Lease) != answer {
		t.Error("the answer was decoded although the event had been")
	}
	if l.patched.lease != nil {
		t.Error("an event is kept whose answer has come")
	}
}

// The answer and the event may come at the same time.
func TestWatchEchoTogether(t *testing.T) {
	e, lease := encodings[1], testLease()
	lease.Annotations = map[string]string{"large": strings.Repeat("x", 1<<16)} // takes a while to decode
	data := e.object("Lease", lease)
	l := &Leases{}
	for range 20 {
		var decoded [2]*coordinationv1.Lease
		var both sync.WaitGroup
		for i := range decoded {
			both.Go(func() { decoded[i] = must(l.decode(e.content, data, true)) })
		}
		both.Wait()
		if decoded[0] != decoded[1] {
			t.Fatal("both were decoded")
		}
	}
}
