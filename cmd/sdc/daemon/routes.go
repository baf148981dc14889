// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// maxBody bounds a control request.
const maxBody = 64 << 10

// routes is the control interface.
func (d *Daemon) routes() http.Handler {
	m := http.NewServeMux()
	watchRoutes(m, d.volumes)
	m.HandleFunc("POST /attach", func(w http.ResponseWriter, r *http.Request) {
		var q AttachRequest
		if !decode(w, r, &q) {
			return
		}
		a, err := d.attach(r.Context(), q)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, a.status())
	})
	m.HandleFunc("POST /detach", func(w http.ResponseWriter, r *http.Request) {
		var q DetachRequest
		if !decode(w, r, &q) {
			return
		}
		done, err := d.detach(q)
		if err != nil {
			fail(w, err)
			return
		}
		reply(w, done)
	})
	m.HandleFunc("GET /list", func(w http.ResponseWriter, _ *http.Request) {
		list := []Attachment{}
		for _, a := range d.attachments() {
			list = append(list, a.status())
		}
		reply(w, list)
	})
	m.HandleFunc("GET /why", func(w http.ResponseWriter, r *http.Request) {
		a, err := d.find(r.URL.Query().Get("device"))
		if err != nil {
			fail(w, err)
			return
		}
		why := WhyReply{Attachment: a.status(), Waits: a.waits()}
		if w := a.watched(); w != nil {
			why.MapRefused = mapRefused(w.volume)
		}
		reply(w, why)
	})
	m.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		if err := d.stop(); err != nil {
			fail(w, err)
			return
		}
		reply(w, struct{}{})
	})
	return m
}

func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	body := http.MaxBytesReader(w, r.Body, maxBody)
	if err := json.NewDecoder(body).Decode(into); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(failure{Error: fmt.Sprintf("decode the request: %v", err)})
		return false
	}
	return true
}

// reply and fail ignore a caller that is gone.
func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

func fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusConflict)
	_ = json.NewEncoder(w).Encode(failure{Error: err.Error(), Ending: errors.Is(err, errEnding)})
}
