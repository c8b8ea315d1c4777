#include <errno.h>
#include <string.h>

#include <sluice/sluice.h>

#include "submit/submit.h"

/* Outcomes are the module's own: one list, under a public name. */
_Static_assert((int)SLUICE_E_TOO_LARGE == (int)SUBMIT_E_TOO_LARGE &&
                       (int)SLUICE_E_AGAIN == (int)SUBMIT_E_AGAIN &&
                       (int)SLUICE_E_ABSENT == (int)SUBMIT_E_ABSENT &&
                       (int)SLUICE_E_DENIED == (int)SUBMIT_E_DENIED &&
                       (int)SLUICE_E_UNSUITABLE == (int)SUBMIT_E_UNSUITABLE,
               "part of the library's interface");

struct SluiceClient {
        mqd_t queue;
        Submitter *submitter;
        uint64_t next_id;
};

void sluice_abandon(SluiceClient *client) {
        if (!client)
                return;
        submitter_free(client->submitter);
        (void)close_fd(client->queue);
        free(client);
}

DEFINE_CLEANUP(SluiceClient, sluice_abandon)

int sluice_open(const char *instance, SluiceClient **ret) {
        _cleanup_(sluice_abandonp) SluiceClient *client = NULL;
        int r;

        client = malloc(sizeof(*client));
        if (!client)
                return -ENOMEM;
        *client = (SluiceClient){ .queue = -1 };

        r = submit_open(instance, &client->queue);
        if (r != 0)
                return r;
        r = submitter_new(client->queue, 0, &client->submitter);
        if (r != 0)
                return r;
        r = submit_draw_id(&client->next_id);
        if (r < 0)
                return r;

        *ret = TAKE_PTR(client);
        return 0;
}

/* An id is used up only by a job that was taken, so those of a frame stay consecutive. */
static int client_took(SluiceClient *client, int r, uint64_t *ret_id) {
        if (r != 0)
                return r;
        if (ret_id)
                *ret_id = client->next_id;
        client->next_id++;
        return 0;
}

int sluice_submit(SluiceClient *client, const void *data, size_t size, uint64_t *ret_id) {
        return client_took(client, submitter_add(client->submitter, data, size, client->next_id), ret_id);
}

int sluice_try_submit(SluiceClient *client, const void *data, size_t size, uint64_t *ret_id) {
        return client_took(client, submitter_try_add(client->submitter, data, size, client->next_id), ret_id);
}

int sluice_flush(SluiceClient *client) {
        return submitter_flush(client->submitter);
}

int sluice_try_flush(SluiceClient *client) {
        return submitter_try_flush(client->submitter);
}

uint64_t sluice_accepted(const SluiceClient *client) {
        return submitter_n_sent(client->submitter);
}

size_t sluice_job_max(const SluiceClient *client) {
        return submitter_job_max(client->submitter);
}

int sluice_fd(const SluiceClient *client) {
        return client->queue;
}

int sluice_close(SluiceClient *client) {
        int r;

        if (!client)
                return 0;
        do
                r = submitter_flush(client->submitter);
        while (r == -EINTR);
        sluice_abandon(client);
        return r;
}

const char *sluice_error_text(int error) {
        switch (error) {
        case 0:
                return "success";
        case SLUICE_E_TOO_LARGE:
                return "the job is larger than a frame of the service's queue";
        case SLUICE_E_AGAIN:
                return "the service's queue is full";
        case SLUICE_E_ABSENT:
                return "no such service takes jobs here";
        case SLUICE_E_DENIED:
                return "this user may not submit to the service";
        case SLUICE_E_UNSUITABLE:
                return "the queue of that name is not a service's";
        default:
                return error < 0 ? strerror(-error) : "unknown error";
        }
}
