"""A FastAPI service: uvicorn examples.fastapi_service:app

    curl -X POST localhost:8000/orders/o-1?cents=4200            # waits for the receipt
    curl -X POST localhost:8000/orders/o-2/start?cents=4200      # answers with the workflow's id
    curl localhost:8000/orders/o-2                               # says where it stands

An order's workflow has the order's id: asking for it twice runs it once. Clients may hang up and
the service may die; the workflow goes on, at the latest with the next process.
"""

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query

from dbos_async import DBOS, Retry, Workflow, WorkflowNotFoundError

dbos = DBOS("fastapi-shop")
app = FastAPI(lifespan=dbos.lifespan)
Cents = Annotated[int, Query(gt=0)]


@dbos.step(retry=Retry(max_attempts=5))
async def charge(order_id: str, cents: int) -> str:
    return f"payment of {cents} for {order_id}, key {dbos.idempotency_key}"


@dbos.workflow()
async def checkout(order_id: str, cents: int) -> str:
    payment = await charge(order_id, cents)
    await dbos.sleep(1)  # durable: a second or a month
    return f"receipt for {payment}"


def checkout_of(order_id: str) -> Workflow[[str, int], str]:
    return checkout.with_options(workflow_id=order_id)


@app.post("/orders/{order_id}")
async def order(order_id: str, cents: Cents) -> dict[str, str]:
    return {"receipt": await checkout_of(order_id)(order_id, cents)}


@app.post("/orders/{order_id}/start", status_code=202)
async def start(order_id: str, cents: Cents) -> dict[str, str]:
    handle = await dbos.start_workflow(checkout_of(order_id), order_id, cents)
    return {"workflow_id": handle.workflow_id}


@app.get("/orders/{workflow_id}")
async def look(workflow_id: str) -> dict[str, Any]:
    try:
        handle = await dbos.retrieve_workflow(workflow_id)
    except WorkflowNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    status = await handle.get_status()
    return {"status": status.status, "receipt": status.output}
